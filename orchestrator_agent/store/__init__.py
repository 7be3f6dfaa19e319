"""Postgres, the one place that knows its client library: the pool, the batch statements, the reads."""
