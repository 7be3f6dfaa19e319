"""Prose as several agents read it: its sentences, words and comparable terms. No I/O."""
