"""Maintenance: what runs beside the messages."""
