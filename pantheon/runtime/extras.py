"""needs_extra: a process whose packages are not installed ends with one line that names the extra which has them."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator

# Packages of this distribution itself: one of these that is missing is a broken installation, not an extra.
_OWN = frozenset({"protocol", "pantheon", "orchestrator_agent", "agents", "migrations"})


@contextlib.contextmanager
def needs_extra(extra: str, *later: str) -> Iterator[None]:
    """Around the imports of a process, whose name the extra bears. `later` are packages that it imports at work only.

    Raises SystemExit when one of them is missing.
    """
    try:
        for name in later:
            if importlib.util.find_spec(name) is None:
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OWN:
            raise
        sys.stderr.write(
            f"{extra}: {error.name} is not installed, and this needs it: pip install 'pantheon-mesh[{extra}]'\n"
        )
        raise SystemExit(1) from None
