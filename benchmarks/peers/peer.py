"""The peers' names; how each is set up and started is not written yet."""

PEERS = ("celery", "dbos", "taskiq", "procrastinate")
