"""Flow control: how much of what waits is let through to agents, and in which order."""
