"""The environment in which the tests run must not change their outcome."""

import os

import pytest

from pantheon.runtime.settings import MeshSettings


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in MeshSettings.model_fields:
        for variable in (name.upper(), f"{name.upper()}_FILE"):
            if variable in os.environ:
                monkeypatch.delenv(variable)
    return monkeypatch
