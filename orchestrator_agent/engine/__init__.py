"""The engine: a run's state and its pure transitions. No I/O, no clock of its own: values in, decisions out."""
