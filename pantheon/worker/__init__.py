"""Worker: what runs an agent's handlers."""
