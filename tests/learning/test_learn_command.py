"""``evomerge learn`` from end to end."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.learning import adamerging
from evomerge.recipe import load_recipe
from tests.learning.conftest import EXPERTS, written
from tests.merging import tensors_of


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def experiment(folder: Path, tmp_path: Path) -> Path:
    return written(folder, tmp_path / "small.yaml")


def test_the_recipe_merges_to_the_model_that_was_learned(
    experiment: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "recipe.yaml"
    done = invoke("learn", experiment, "--method", "expert_merging", "--items", 4,
                  "--set", "stability=0.1", "--set", "epochs=2", "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "step 0/2: loss" in done.output
    assert "language/1/mlp" in done.output
    head = out.read_text().splitlines()[:3]
    assert head[0] == "# learned by expert_merging on small"
    assert "items 4, epochs 2" in head[1]
    assert head[1].endswith("seed 3")
    assert head[2].startswith("# 2 of 2 steps, loss ")

    merged = invoke("merge", out, "--out", tmp_path / "model")
    assert merged.exit_code == 0, merged.output
    recipe = load_recipe(out)
    weights = {g.tensors: g.values["weight"] for g in recipe.parameters}
    name = "model.layers.1.mlp.up_proj.weight"
    base, model = tensors_of(folder / "base"), tensors_of(tmp_path / "model")
    expected = base[name].double()
    for expert in EXPERTS:
        delta = tensors_of(folder / expert)[name].double() - base[name].double()
        expected += weights["language/1/mlp"][expert] * delta
    torch.testing.assert_close(model[name].double(), expected, rtol=1e-6, atol=1e-6)


def test_the_same_command_writes_the_same_file(experiment: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.yaml", "b.yaml")]
    for file in files:
        done = invoke("learn", experiment, "--method", "adamerging", "--set", "iterations=3",
                      "--seed", 5, "--out", file)  # fmt: skip
        assert done.exit_code == 0, done.output
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "adamergin"), "did you mean 'adamerging'"),
        (("--method", "adamerging", "--set", "iteration=3"), "did you mean 'iterations'"),
        (("--method", "adamerging", "--set", "iterations"), "expected NAME=VALUE"),
        (("--method", "adamerging", "--set", "rate=fast"), "expected a number, found 'fast'"),
        (("--method", "expert_merging", "--items-for", "add=adds"), "did you mean 'adds'"),
    ],
)
def test_wrong_arguments(
    experiment: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = invoke("learn", experiment, *arguments, "--out", tmp_path / "recipe.yaml")
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "recipe.yaml").exists()


def test_a_file_is_never_overwritten(experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "recipe.yaml"
    out.write_text("mine")
    done = invoke("learn", experiment, "--method", "adamerging", "--out", out)
    assert done.exit_code == 2
    assert "exists" in done.stderr
    assert out.read_text() == "mine"


@pytest.mark.parametrize(("cause", "code"), [(float("nan"), 1), (KeyboardInterrupt(), 130)])
def test_what_was_learned_before_a_stop_is_kept(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: object, code: int
) -> None:
    honest, calls = adamerging.entropy, itertools.count()

    def broken(sample, found):  # type: ignore[no-untyped-def]
        if next(calls) < 24:
            return honest(sample, found)
        if isinstance(cause, BaseException):
            raise cause
        return honest(sample, found) * cause

    monkeypatch.setattr(adamerging, "entropy", broken)
    out = tmp_path / "recipe.yaml"
    done = invoke("learn", experiment, "--method", "adamerging", "--set", "iterations=9",
                  "--out", out)  # fmt: skip
    assert done.exit_code == code, done.output
    assert not out.exists()
    stopped = tmp_path / "recipe.stopped.yaml"
    assert f"the coefficients after 1 of 9 steps are in {stopped}" in done.stderr
    weights = [w for g in load_recipe(stopped).parameters for w in g.values["weight"].values()]
    assert any(w != 0.3 for w in weights)
