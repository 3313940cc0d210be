"""The verbs from end to end on a Llama text checkpoint and its full and LoRA experts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from evomerge.cli.main import app
from tests.studies import write_experiment

VERBS = (
    "run", "status", "front", "export", "merge", "plan", "compare", "calibrate", "learn",
    "validate", "methods", "inspect", "zoo", "diff", "score", "continue", "ls",
    "init", "watch", "track", "dashboard", "report",
)  # fmt: skip


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def finished(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the real transformers backend."""
    out = tmp_path_factory.mktemp("runs") / "text"
    experiment = write_experiment(
        workspace, "text.yaml", backend={"name": "transformers"}, budget={"candidates": 4}
    )
    printed = invoke("run", experiment, "--out", out)
    assert "weight average" in printed
    assert "budget of 4 candidates is spent" in printed
    return out


def test_status_and_front_as_json(finished: Path) -> None:
    status = json.loads(invoke("status", finished, "--json"))
    ended = {"pending": 0, "scored": 4, "dropped": 0, "probed": 0, "failed": 0}
    assert status["candidates"] == ended
    assert status["finished"]

    front = json.loads(invoke("front", finished, "--json"))
    assert [p["id"] for p in front["front"]] == status["front"]
    assert front["knee"] in status["front"]
    assert front["references"][0]["name"] == "base"
    for point in (*front["front"], *front["references"]):
        assert point["held_out"]["surprise"]["n"] == 30
        assert point["held_out"]["surprise"]["se"] > 0


def test_front_and_status_as_text(finished: Path) -> None:
    printed = invoke("front", finished)
    assert "(knee)" in printed
    assert "task arithmetic 0.3" in printed
    assert "4 of 4 candidates" in invoke("status", finished).replace("\n", " ")


@pytest.mark.parametrize("pick", ["knee", "best:surprise", "7", "weight average"])
def test_export_loads_in_transformers_and_answers_as_scored(
    finished: Path, tmp_path: Path, pick: str
) -> None:
    out = tmp_path / "model"
    printed = invoke("export", finished, "--pick", pick, "--out", out, "--rescore")
    assert "answered as scored" in printed

    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    prompt = tokenizer("hello", return_tensors="pt")
    with torch.no_grad():
        assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] >= 2
    assert "task arithmetic 0.3" in (out / "README.md").read_text()


def test_the_exported_recipe_merges_to_the_same_files(finished: Path, tmp_path: Path) -> None:
    invoke("export", finished, "--out", tmp_path / "exported")
    invoke("merge", tmp_path / "exported" / "recipe.yaml", "--out", tmp_path / "merged")

    files = [tmp_path / d / "model.safetensors" for d in ("exported", "merged")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_export_refuses_when_a_source_has_changed(workspace: Path, tmp_path: Path) -> None:
    import shutil

    own = Path(shutil.copytree(workspace, tmp_path / "own"))
    invoke("run", write_experiment(own, budget={"candidates": 1}), "--out", tmp_path / "run")
    shutil.rmtree(own / "adds")
    shutil.copytree(own / "names", own / "adds")

    result = CliRunner().invoke(app, ["export", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "sha256" in result.stderr
    assert not (tmp_path / "run" / "export").exists()


def test_a_plan_and_a_merge_with_a_budget(workspace: Path, tmp_path: Path) -> None:
    recipe = {
        "base": str(workspace / "base"),
        "experts": {"adds": str(workspace / "adds")},
        "method": "ties",
        "parameters": [{"tensors": "*/*/*"}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    printed = invoke("plan", tmp_path / "recipe.yaml", "--io-budget", "50%")
    for word in ("reads", "writes", "memory", "time", "left out of the task vectors"):
        assert word in printed
    planned = json.loads(invoke("plan", tmp_path / "recipe.yaml", "--io-budget", "50%", "--json"))
    printed = invoke(
        "merge", tmp_path / "recipe.yaml", "--io-budget", "50%", "--out", tmp_path / "out"
    )
    assert "left out of the task vectors" in printed
    stored = json.loads((tmp_path / "out" / "lineage.json").read_text())["io_budget"]
    assert stored == planned["io_budget"]


def test_a_merge_with_weight_one_is_that_expert(workspace: Path, tmp_path: Path) -> None:
    recipe = {
        "base": str(workspace / "base"),
        "experts": {"adds": str(workspace / "adds")},
        "method": "linear",
        "parameters": [{"tensors": "*/*/*"}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    invoke("merge", tmp_path / "recipe.yaml", "--out", tmp_path / "out")

    merged = load_file(tmp_path / "out" / "model.safetensors")
    expert = load_file(workspace / "adds" / "model.safetensors")
    assert merged.keys() == expert.keys()
    for name, tensor in expert.items():
        assert torch.equal(merged[name].view(torch.int16), tensor.view(torch.int16)), name


def test_inspect(workspace: Path) -> None:
    base, adds = workspace / "base", workspace / "adds"
    described: dict[str, Any] = json.loads(invoke("inspect", base, adds, "--json"))
    changed = {
        (g["tower"], g["module"]): (g["changed"][str(adds)], g["tensors"])
        for g in described["groups"]
    }
    assert changed["language", "attention"] == (8, 8)  # q, k, v, o in two blocks
    assert changed["language", "mlp"] == (6, 6)
    assert changed["language", "norm"][0] == 0
    assert described["experts"][str(adds)]["kind"] == "full"
    assert "attention" in invoke("inspect", base, adds)


def test_methods() -> None:
    listed = {m["name"]: m for m in json.loads(invoke("methods", "--json"))}
    assert {"linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp"} <= set(listed)
    assert [p["name"] for p in listed["ties"]["parameters"]][:2] == ["weight", "density"]
    assert "arXiv 2306.01708" in invoke("methods", "ties")
    assert "slerp" in invoke("methods")


def test_validate_says_what_would_be_searched(workspace: Path) -> None:
    printed = invoke("validate", write_experiment(workspace, "valid.yaml"))
    assert "12 genes in 4 groups" in printed  # 3 experts, 2 blocks, attention and MLP
    assert "weight average" in printed


def test_every_verb_has_help_with_an_example() -> None:
    for verb in VERBS:
        printed = " ".join(invoke(verb, "--help").split())
        assert "Usage:" in printed
        if verb != "zoo":
            assert f"Example: evomerge {verb}" in printed


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from evomerge.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'ray', 'optuna', 'nevergrad', 'numpy'}\n"
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
