"""Restate: a handler that calls another service five times, or makes five durable steps of its own."""
