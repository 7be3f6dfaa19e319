"""Runtime: what every process of the mesh stands on, whatever it does.

- `settings`: what the environment sets (servers, credentials, limits), read once by `MeshSettings.load()`.
- `logs`: structlog and the standard library's logging through one pipe to stderr.
- `event_loop`: uvloop, where it exists, and what becomes of errors that no task handled.
- `background`, `periodic`: ending a task for good; one call again and again, with jitter and a wake.
- `health`: `/healthz` and `/readyz` for probes.
- `extras`: the one line for a process whose packages are not installed.

Invariants:

- Nothing is read from the environment at import, and no import starts anything.
- A wrong setting is one SettingsError of one line, with the variable, its value (never a secret's) and what is allowed.
- Logging never raises and never loses a line for a value in it.
- A background task has a name. `end` returns only when its tasks have ended; a PeriodicTask survives a mistake in its
  call.

Who may call it: everything else, the orchestrator, the agents and their tests included. It imports `protocol` alone: it
knows no NATS, no database and no agent.
"""
