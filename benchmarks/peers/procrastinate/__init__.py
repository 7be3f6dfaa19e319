"""procrastinate on Postgres: five jobs, of which each defers the next."""
