"""A program of its own, because a process can be stopped and a thread cannot: typesets a folder's main.typ to PDF."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import typst


def main() -> int:
    """Arguments: the folder, and the time to be written into the file in seconds since 1970."""
    folder, epoch = Path(sys.argv[1]), int(sys.argv[2])
    try:
        pdf = typst.compile(
            folder / "main.typ", root=folder, format="pdf", timestamp=datetime.fromtimestamp(epoch, UTC)
        )
    except RuntimeError as error:
        sys.stderr.write(str(error))
        return 1
    sys.stdout.buffer.write(pdf)
    return 0


if __name__ == "__main__":
    sys.exit(main())
