"""What the README shows works as printed."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.config import load_experiment
from evomerge.directions import direction_recipe
from evomerge.methods.registry import FAMILIES
from evomerge.recipe import load_recipe
from evomerge.scoring.data import load_items

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


EXPERIMENT, RECIPE, DIRECTIONS = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


def test_the_experiment_is_valid(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT)
    experiment = load_experiment(tmp_path)

    assert list(experiment.experts) == ["math", "code"]
    assert experiment.optimise.names == ("math", "code")


def test_the_directions_are_valid(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT + DIRECTIONS)
    experiment = load_experiment(tmp_path)

    recipe = direction_recipe(experiment, experiment.directions["filtered"])
    assert (recipe.method, list(recipe.experts)) == ("optmerge", ["math", "code"])


def test_the_recipe_is_valid(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "recipe.yaml")

    assert recipe.parameters[0].values["weight"] == {"math": 1.0, "code": 0.7}


def test_the_table_names_every_family() -> None:
    shown = re.findall(r"^\| (\w+) \| \S", README[README.index("## Merge methods") :], re.MULTILINE)
    assert shown[1:] == list(FAMILIES)


def test_the_data_line_is_an_item(tmp_path: Path) -> None:
    (line,) = re.findall(r'^    (\{"messages".*\})$', README, re.MULTILINE)
    (tmp_path / "items.jsonl").write_text(line + "\n")

    assert [item.answer for item in load_items(tmp_path / "items.jsonl")] == ["51"]


def test_every_command_exists() -> None:
    verbs = set(re.findall(r"(?:^    |`)evomerge ([a-z]+)", README, re.MULTILINE))
    assert {"inspect", "validate", "run", "front", "export", "merge", "methods"} <= verbs
    for verb in verbs:
        assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0, verb
