"""Intake: requests become rows."""
