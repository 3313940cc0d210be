"""Reference points: which there are, and which of them lie in the search space."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.directions import make_directions
from evomerge.engine.study import Study, open_study
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


def weights(study: Study, name: str) -> dict[str, float] | None:
    """By direction its weight in every gene, which must agree; None outside the space."""
    [genome] = [r.genome for r in study.references if r.name == name]
    if genome is None:
        return None
    found: dict[str, set[float]] = {}
    for gene, value in study.space.decode(genome).items():
        found.setdefault(gene.partition("[")[2].partition("]")[0], set()).add(round(value, 12))
    assert all(len(values) == 1 for values in found.values())
    return {direction: values.pop() for direction, values in found.items()}


def opened(workspace: Path, folder: Path, directions: dict[str, Any]) -> Study:
    return open_study(make_directions(small_experiment(workspace, directions=directions), folder))


def test_a_merge_beside_the_experts_leaves_every_reference_in_the_space(
    workspace: Path, tmp_path: Path
) -> None:
    directions = {**dict.fromkeys(EXPERTS, "expert"), "merged": {"method": "ties"}}
    study = opened(workspace, tmp_path, directions)

    none = dict.fromkeys((*EXPERTS, "merged"), 0.0)
    assert set(study.space.experts) == {*EXPERTS, "merged"}
    assert weights(study, "base") == none
    assert weights(study, "sorts") == {**none, "sorts": 1.0}
    assert weights(study, "weight average") == {
        **dict.fromkeys(EXPERTS, round(1 / 3, 12)),
        "merged": 0.0,
    }
    assert weights(study, "task arithmetic 0.3") == {
        **dict.fromkeys(EXPERTS, 0.3),
        "merged": 0.0,
    }
    assert weights(study, "merged") == {**none, "merged": 1.0}
    recipes = {r.name: r.recipe for r in study.references}
    assert set(recipes["weight average"].experts) == set(EXPERTS)
    assert dict(recipes["merged"].experts) == {"merged": study.space.experts["merged"]}
    assert study.space.experts["merged"].path == str(tmp_path / "merged")


def test_merges_alone_hold_the_base_and_themselves(workspace: Path, tmp_path: Path) -> None:
    study = opened(workspace, tmp_path, {"merged": {"method": "task_arithmetic"}})
    assert weights(study, "base") == {"merged": 0.0}
    assert weights(study, "merged") == {"merged": 1.0}
    for name in (*EXPERTS, "weight average", "task arithmetic 0.3"):
        assert weights(study, name) is None


def test_experts_left_out_are_compared_with_only(workspace: Path, tmp_path: Path) -> None:
    study = opened(workspace, tmp_path, {"adds": "expert", "merged": {"method": "ties"}})
    assert list(study.space.experts) == ["adds", "merged"]
    assert weights(study, "adds") == {"adds": 1.0, "merged": 0.0}
    assert weights(study, "names") is None
    assert weights(study, "weight average") is None
