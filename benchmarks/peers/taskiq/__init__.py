"""taskiq on JetStream: a pipeline of five tasks."""
