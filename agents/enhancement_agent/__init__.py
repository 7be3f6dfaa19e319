"""The agent that corrects and polishes Markdown prose without touching what is not prose."""
