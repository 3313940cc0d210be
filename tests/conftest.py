"""Fixtures that several parts share; every test has a cache of its own."""

from __future__ import annotations

import os
from pathlib import Path

# The models here are so small that more threads than one only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

from tests.studies import make_workspace


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor fill the user's catalogue cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("EVOMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three experts and data: see ``tests.studies``. Do not change what is in it."""
    return make_workspace(tmp_path_factory.mktemp("workspace"))
