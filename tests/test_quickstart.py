"""The shipped experiment on the shipped zoo: a few candidates from end to end, full and LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.content import find
from evomerge.zoo.paths import TASKS


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "quickstart"
    invoke("run", "quickstart", "--out", out, "--candidates", "8")
    return out


def test_the_front_stands_beside_every_reference_on_the_held_out_split(finished: Path) -> None:
    front = json.loads(invoke("front", finished, "--json"))
    references = {p["name"]: p["held_out"] for p in front["references"]}

    merges = ["weight average", "task arithmetic 0.3", "swudi"]
    assert list(references) == ["base", *sorted(TASKS), *merges]
    for task in TASKS:
        own = references[task][f"zoo/{task}"]
        assert own["n"] == 400
        assert own["value"] > references["base"][f"zoo/{task}"]["value"] + 0.15
    assert references["weight average"]["mean"]["value"] > references["base"]["mean"]["value"]


def test_probes_with_slopes_take_half_of_the_budget(finished: Path) -> None:
    status = json.loads(invoke("status", finished, "--json"))["candidates"]
    assert status["scored"] == 4  # and 20 probes before, 4 between them, of 3 x 50 items
    assert status["probed"] == 32


def test_the_knee_is_exported_and_answers_as_it_was_scored(finished: Path, tmp_path: Path) -> None:
    printed = invoke("export", finished, "--out", tmp_path / "model", "--rescore")
    assert "all 1000 items" in printed

    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert model.config.model_type == "qwen2_vl"


@pytest.mark.parametrize(
    ("space", "experts"),
    [
        ("layerwise-task-arithmetic", TASKS),
        ("layerwise-ties", TASKS),
        ("layerwise-dare-ties", TASKS),
        ("slerp-gradient", TASKS[:2]),
        ("lines", TASKS),
        ("optmerge-filter", TASKS),
        ("bayesian-data-free", TASKS),
    ],
)
def test_lora_experts_go_through_every_shipped_space(
    tmp_path: Path, space: str, experts: tuple[str, ...]
) -> None:
    content: dict[str, Any] = yaml.safe_load(find("experiments", "quickstart").read_text())
    del content["directions"]
    content |= {
        "experts": {task: f"zoo:lora/{task}" for task in experts},
        "space": space,
        "objectives": ["zoo/ocr"],
        "optimise": {"maximise": ["zoo/ocr"]},
        "search": {"algorithm": "random", "seed": 0},
        "budget": {"candidates": 1},
    }
    (tmp_path / "lora.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    invoke("run", tmp_path / "lora.yaml", "--out", tmp_path / "run")
    printed = invoke("export", tmp_path / "run", "--pick", "knee", "--rescore")
    assert "all 200 items" in printed
