"""These tests are about faster code, so it is enabled, whatever the environment variable says."""

import pytest

from sb3_mbrl import acceleration


@pytest.fixture(autouse=True)
def enabled(monkeypatch):
    monkeypatch.setattr(acceleration, "enabled", True)
