"""Reads the input of commands: payload arguments, request folders, ids of tasks."""
