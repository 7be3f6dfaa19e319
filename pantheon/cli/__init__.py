"""The command line: `pantheon up | run | tasks | task | agents | workflows | replay | dead-letters | demo | …`."""

import sys


def main() -> int:
    """The console script's entry point; returns the exit status."""
    try:
        from pantheon.cli.app import main as run
    except KeyboardInterrupt:
        # The imports take half a second, long enough for a second thought.
        sys.stderr.write("pantheon: interrupted\n")
        return 130
    return run()
