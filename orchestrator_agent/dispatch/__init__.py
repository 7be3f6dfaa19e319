"""Dispatch: which agent gets an attempt, and when."""
