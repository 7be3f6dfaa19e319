"""The pytest fixture `mesh`: put `from pantheon.testing import mesh` into a conftest.py."""

import pytest

from testkit.mesh import TestMesh


@pytest.fixture
def mesh() -> TestMesh:
    """A mesh of the test's own, with the built-in workflows and no agents."""
    return TestMesh()
