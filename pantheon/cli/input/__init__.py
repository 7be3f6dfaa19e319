"""What a person gives a command, read: payloads, request folders, ids of tasks."""
