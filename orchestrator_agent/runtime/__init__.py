"""Runtime: what happens to runs is decided, written and published."""
