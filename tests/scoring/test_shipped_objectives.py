from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.scoring.objectives import load_objective

ROOT = Path(__file__).parents[2] / "objectives"
FILES = sorted(ROOT.rglob("objective.yaml"))


def test_there_are_some():
    assert len(FILES) >= 5


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.parent.relative_to(ROOT).as_posix())
def test_shipped_objectives_load(file):
    """Their data files are there, are the declared ones, and hold only items that can be scored."""
    objective = load_objective(str(file), Path.cwd())
    assert objective.name == file.parent.relative_to(ROOT).as_posix()
    declared = objective.measure.data
    assert declared.search.sha256 == objective.sha256["search"]
    assert declared.held_out.sha256 == objective.sha256["held_out"]
    assert len(objective.items("search")) >= 30
    assert len(objective.items("held_out")) >= 30
