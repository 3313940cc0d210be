"""Studies whose candidates are raced or probed, and searches that drive them, for tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from evomerge.engine import loop
from evomerge.engine.study import Study, open_study
from evomerge.search.base import Genome, Look, Search
from evomerge.search.testing import EchoGuided, EchoSearch, FakeSearch
from tests.studies import EXPERTS, small_experiment

PLAIN = {"method": "task_arithmetic", "genes": {"weight": {"per": ["expert"], "low": 0, "high": 1}}}
"""Three genes; references and candidates differ much, so races are decided."""
ITEMS = 120


def raced(workspace: Path, folder: Path, level: float | None = 0.2, **changes: Any) -> Study:
    """The small study with more items, over three weights, raced at a level."""
    files = folder / "study"
    if not files.exists():
        shutil.copytree(workspace, files)
        lines = [
            json.dumps({"prompt": f"{EXPERTS[i % 3]} search {i} is{i}", "answer": f"is{i}"})
            for i in range(ITEMS)
        ]
        (files / "search.jsonl").write_text("\n".join(lines) + "\n")
    search = {"algorithm": "random", "seed": 3}
    if level is not None:
        search["racing"] = {"level": level}
    return open_study(small_experiment(files, **{"space": PLAIN, "search": search, **changes}))


def driven_by(patch: pytest.MonkeyPatch, make: Callable[[], Search]) -> list[Search]:
    """Lets loops search with what ``make`` gives; returns the list of all that were made."""
    made: list[Search] = []

    def instead(*arguments: Any) -> Search:
        made.append(make())
        return made[-1]

    patch.setattr(loop, "make_search", instead)
    return made


def echo() -> Search:
    return EchoSearch(3)


def guided(*looks: Look | None) -> Callable[[], Search]:
    return lambda: EchoGuided(3, looks)


def listed(genomes: Sequence[Genome]) -> Callable[[], Search]:
    return lambda: FakeSearch(genomes)
