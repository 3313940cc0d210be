"""Bad input ends at once: one line that says what, where and how to mend it; exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import Result
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from evomerge.cli.main import app
from tests.studies import settings, write_experiment

RunCommand = Callable[..., Result]


@pytest.fixture
def own(workspace: Path, tmp_path: Path) -> Path:
    """A copy of the workspace that a test may damage."""
    return Path(shutil.copytree(workspace, tmp_path / "own"))


def refuse(folder: Path, *arguments: str | Path) -> str:
    """Runs a command that must fail with code 2 and one line, and returns that line."""
    before = sorted(p for p in folder.rglob("*") if p.is_file())
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    after = sorted(p for p in folder.rglob("*") if p.is_file() and "ledger.db" not in p.name)
    assert after == before  # nothing was written
    return lines[0]


def test_unknown_key_names_file_line_and_the_nearest_key(own: Path) -> None:
    path = own / "e.yaml"
    text = yaml.safe_dump(settings(), sort_keys=False).replace("budget:", "bugdet:")
    path.write_text(text)
    line = text.splitlines().index("bugdet:") + 1

    message = refuse(own, "run", path)
    assert f"{path}:{line}" in message
    assert "unknown key 'bugdet'; did you mean 'budget'?" in message


def test_wrong_type(own: Path) -> None:
    path = write_experiment(own, budget={"candidates": "many"})
    message = refuse(own, "run", path)
    assert "budget.candidates" in message
    assert "'many'" in message


def test_missing_file(own: Path) -> None:
    assert "no such file" in refuse(own, "run", own / "nothing.yaml")


def test_unknown_experiment_lists_the_known(own: Path) -> None:
    assert "quickstart" in refuse(own, "run", "quikstart")


def test_incompatible_checkpoints_list_every_mismatch(own: Path) -> None:
    file = own / "adds" / "model.safetensors"
    tensors = load_file(file)
    dropped, cut = sorted(tensors)[5], sorted(tensors)[8]
    del tensors[dropped]
    tensors[cut] = tensors[cut][:-1].clone()
    save_file(tensors, file, metadata={"format": "pt"})

    message = refuse(own, "run", write_experiment(own))
    assert dropped.removeprefix("model.") in message
    assert cut.removeprefix("model.") in message


def test_truncated_safetensors(own: Path) -> None:
    file = own / "names" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    message = refuse(own, "run", write_experiment(own))
    assert str(file) in message
    assert "100" in message or "bytes" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(own: Path, value: float) -> None:
    file = own / "sorts" / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if "up_proj" in n)
    tensors[name][0, 0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    message = refuse(own, "run", write_experiment(own))
    assert name in message
    assert "sorts" in message


def test_empty_data(own: Path) -> None:
    (own / "search.jsonl").write_text("")
    assert "search.jsonl" in refuse(own, "run", write_experiment(own))


def test_wrong_sha256(own: Path) -> None:
    objectives = settings()["objectives"]
    objectives[0]["data"]["search"] = {"file": "search.jsonl", "sha256": "0" * 64}
    message = refuse(own, "run", write_experiment(own, objectives=objectives))
    assert "sha256" in message
    assert "0" * 64 in message


def test_an_item_in_both_splits(own: Path) -> None:
    with (own / "held_out.jsonl").open("a") as file:
        file.write((own / "search.jsonl").read_text().splitlines()[0] + "\n")
    assert "held-out" in refuse(own, "run", write_experiment(own))


def test_unknown_objective_in_optimise(own: Path) -> None:
    optimise = {"maximise": ["rihgt"]}
    message = refuse(own, "run", write_experiment(own, optimise=optimise))
    assert "did you mean 'right'?" in message


def test_unknown_algorithm(own: Path) -> None:
    search = {"algorithm": "cmma", "seed": 0}
    assert "'cma'" in refuse(own, "run", write_experiment(own, search=search))


def test_method_with_too_many_experts(own: Path) -> None:
    assert "slerp" in refuse(own, "run", write_experiment(own, space="slerp-gradient"))


def test_output_directory_in_use(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "precious.txt").write_text("keep me")
    recipe = {
        "base": str(own / "base"),
        "experts": {"adds": str(own / "adds")},
        "method": "linear",
        "parameters": [{"tensors": "language/*/mlp"}],
    }
    (own / "recipe.yaml").write_text(json.dumps(recipe))

    message = refuse(own, "merge", own / "recipe.yaml", "--out", out)
    assert str(out) in message
    assert (out / "precious.txt").read_text() == "keep me"


def test_run_directory_of_another_experiment(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = write_experiment(own, "a.yaml", budget={"candidates": 1})
    assert CliRunner().invoke(app, ["run", str(first), "--out", str(out)]).exit_code == 0
    other = write_experiment(own, "b.yaml", search={"algorithm": "random", "seed": 0})
    message = refuse(own, "run", other, "--out", out)
    assert "another experiment" in message
    assert "--out" in message


def test_a_directory_without_a_run(own: Path) -> None:
    for verb in ("status", "front", "export"):
        assert "holds no run" in refuse(own, verb, own)


def test_a_hub_name_without_a_network(own: Path) -> None:
    message = refuse(own, "inspect", "some-org/some-model")
    assert "some-org/some-model" in message
    assert "network" in message


def test_pickled_weights_are_refused(own: Path) -> None:
    (own / "adds" / "model.safetensors").unlink()
    torch.save({}, own / "adds" / "pytorch_model.bin")
    assert "safetensors" in refuse(own, "run", write_experiment(own))
