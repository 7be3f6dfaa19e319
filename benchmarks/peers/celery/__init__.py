"""Celery on Valkey: a canvas chain of five tasks."""
