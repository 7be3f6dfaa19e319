"""The command line: `pantheon up | run | tasks | task | agents | workflows | replay | dead-letters | demo | …`."""


def main() -> int:
    """The console script's entry point; returns the exit status."""
    from pantheon.cli.app import main as run

    return run()
