"""Reference points: which there are, and which of them lie in the search space."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.engine.study import open_study
from tests.studies import EXPERTS, small_experiment


def placed(workspace: Path, space: Any, **changes: Any) -> dict[str, bool]:
    study = open_study(small_experiment(workspace, space=space, **changes))
    return {r.name: r.genome is not None for r in study.references}


def test_task_arithmetic_holds_every_reference(workspace: Path) -> None:
    assert placed(workspace, "layerwise-task-arithmetic") == dict.fromkeys(
        ("base", *EXPERTS, "weight average", "task arithmetic 0.3"), True
    )


@pytest.mark.parametrize("space", ["layerwise-ties", "layerwise-dare-ties"])
def test_sign_elections_hold_base_and_experts_only(workspace: Path, space: str) -> None:
    assert placed(workspace, space) == {
        "base": True,
        **dict.fromkeys(EXPERTS, True),
        "weight average": False,
        "task arithmetic 0.3": False,
    }


def test_slerp_holds_its_two_ends(workspace: Path) -> None:
    two = {name: name for name in EXPERTS[:2]}
    found = placed(workspace, "slerp-gradient", experts=two)
    assert found == {
        "base": False,
        EXPERTS[0]: True,
        EXPERTS[1]: True,
        "weight average": False,
        "task arithmetic 0.3": False,
    }


def test_a_range_that_excludes_a_reference(workspace: Path) -> None:
    space = {
        "method": "task_arithmetic",
        "genes": {"weight": {"per": ["expert"], "low": 0.1, "high": 0.5}},
    }
    found = placed(workspace, space)
    assert [name for name, inside in found.items() if inside] == [
        "weight average",
        "task arithmetic 0.3",
    ]


def test_an_expert_that_also_changes_a_norm_is_not_in_a_space_without_norms(
    workspace: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(workspace, tmp_path / "own"))
    file = own / "names" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 1.5)
    save_file(tensors, file, metadata={"format": "pt"})

    found = placed(own, "layerwise-task-arithmetic")
    assert [name for name, inside in found.items() if not inside] == ["names"]
