"""The fixture of the test kit, as its users have it."""

from pantheon.testing import mesh

__all__ = ["mesh"]
