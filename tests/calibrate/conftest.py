from __future__ import annotations

from pathlib import Path

import pytest

from tests.calibrate.world import make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `make_world`. Do not change what is in it."""
    return make_world(tmp_path_factory.mktemp("world"))
