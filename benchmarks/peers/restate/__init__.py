"""Restate's program."""
