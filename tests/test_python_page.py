"""The page of Python examples runs as printed, and what it registers takes part in a search."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import evomerge
from evomerge.content import find
from evomerge.errors import CheckpointError, ConfigError, IntegrityError
from evomerge.methods import registry
from evomerge.scoring import measures, metrics
from evomerge.search import algorithms as searches
from tests.studies import settings

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
TABLES: list[dict[str, Any]] = [
    registry._METHODS,
    metrics.METRICS,
    measures.KINDS,
    searches.ALGORITHMS,
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small finished run of the zoo where the page expects it."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("ocr", "vqa"):
        shutil.copytree(find("objectives", f"zoo/{name}").parent, folder / name)
        lines = (folder / name / "search.jsonl").read_text().splitlines()[:20]
        (folder / name / "search.jsonl").write_text("\n".join(lines) + "\n")
        objective = yaml.safe_load((folder / name / "objective.yaml").read_text())
        objective["data"] = {"search": "search.jsonl"}
        (folder / name / "objective.yaml").write_text(yaml.safe_dump(objective))
    experiment = {
        "base": "zoo:base",
        "experts": {"ocr": "zoo:full/ocr", "vqa": "zoo:full/vqa"},
        "space": "layerwise-task-arithmetic",
        "objectives": [str(folder / "ocr"), str(folder / "vqa")],
        "optimise": {"maximise": ["mean", "min"]},
        "search": {"algorithm": "random"},
        "budget": {"candidates": 2},
    }
    evomerge.run_search(experiment, folder / "runs" / "quickstart", quiet=True)
    return folder


@pytest.fixture
def registries() -> Iterator[None]:
    """What an example registers is forgotten afterwards."""
    before = [dict(table) for table in TABLES]
    yield
    for table, kept in zip(TABLES, before, strict=True):
        table.clear()
        table.update(kept)


def run_example(title: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(EXAMPLES[title], title, "exec", dont_inherit=True), names)
    return names


def test_every_section_has_an_example() -> None:
    assert len(EXAMPLES) == 8


@pytest.mark.parametrize("title", EXAMPLES)
@pytest.mark.usefixtures("registries")
def test_an_example(title: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    run_example(title)


@pytest.mark.usefixtures("registries")
def test_what_is_registered_takes_part_in_a_search(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for title in EXAMPLES:
        if title.endswith("your own"):
            run_example(title)
    monkeypatch.chdir(workspace)
    experiment = settings(
        objectives=[
            {
                "name": "begins",
                "kind": "answer",
                "metric": {"name": "starts_with", "characters": 2},
                "max_new_tokens": 4,
                "data": {"search": "search.jsonl"},
            },
            {"name": "brief", "kind": "brevity", "limit": 2, "data": {"search": "search.jsonl"}},
        ],
        optimise={"maximise": ["begins", "brief"]},
        space={"method": "median", "genes": {"scale": {"per": ["group"]}}},
        search={"algorithm": "hill-climb", "seed": 1},
        budget={"candidates": 4},
    )
    found = evomerge.run_search(experiment, tmp_path / "run", quiet=True)
    scored = [c for c in found.state.searched() if c.scores]
    genomes = [c.genome for c in scored]

    assert len(scored) == 4
    assert len(set(genomes)) == 4
    for candidate in scored:
        assert candidate.scores
        # the fake answers a right item in two tokens and a wrong one in one
        wrong = [1.0 - x for x in candidate.scores.items["begins"]]
        assert list(candidate.scores.items["brief"]) == wrong
    longer = {**experiment, "budget": {"candidates": 6}}
    more = evomerge.run_search(longer, tmp_path / "run", quiet=True)
    straight = evomerge.run_search(longer, tmp_path / "straight", quiet=True)
    assert [c.genome for c in more.state.searched()] == [
        c.genome for c in straight.state.searched()
    ]


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="'numeric' is registered twice"):
        evomerge.register_metric(metrics.numeric)
    with pytest.raises(ValueError, match="'choice' is registered twice"):
        evomerge.register_kind(measures.Choice)
    with pytest.raises(ValueError, match="'cma' is registered twice"):
        evomerge.register_search("cma", lambda *_: None, "")
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        evomerge.serch  # noqa: B018


def test_a_candidate_that_is_not_what_was_scored_is_refused(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "runs" / "quickstart", run)
    import sqlite3

    with sqlite3.connect(run / "ledger.db") as ledger:
        rows = ledger.execute("SELECT id, body FROM events WHERE kind = 'scored'").fetchall()
        for id, body in rows:
            changed = json.dumps({**json.loads(body), "digest": "0" * 64})
            ledger.execute("UPDATE events SET body = ? WHERE id = ?", (changed, id))
    ledger.close()
    with pytest.raises(IntegrityError, match="was scored with weights of digest 0000"):
        evomerge.load_candidate(run, "knee")


def test_merging_state_dicts_equals_merging_checkpoints(workspace: Path) -> None:
    from safetensors.torch import load_file

    from evomerge.instantiate import open_merge
    from evomerge.recipe import Group, Recipe, Source

    names = ("sorts", "adds")
    files = {n: load_file(workspace / n / "model.safetensors") for n in ("base", *names)}
    recipe = Recipe(
        base=Source(path=str(workspace / "base")),
        experts={n: Source(path=str(workspace / n)) for n in names},
        method="ties",
        parameters=(
            Group.model_validate(
                {"tensors": "language/*/mlp", "density": 0.4, "weight": {"adds": 0.5, "sorts": 1.0}}
            ),
        ),
    )
    expected = dict(open_merge(recipe).tensors())
    merged = evomerge.merge_state_dicts(
        "ties",
        files["base"],
        {n: files[n] for n in names},
        tensors="language/*/mlp",
        density=0.4,
        weight={"adds": 0.5, "sorts": 1.0},
    )

    assert set(merged) == set(files["base"])
    assert expected
    for name, tensor in merged.items():
        assert tensor.dtype == files["base"][name].dtype
        assert torch.equal(tensor, expected.get(name, files["base"][name]))


def test_state_dicts_that_do_not_fit_are_refused() -> None:
    base = {"w": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match="'v' that the base lacks"):
        evomerge.merge_state_dicts("linear", base, {"a": {"v": torch.zeros(2, 2)}})
    with pytest.raises(CheckpointError, match=r"shape \(3, 2\)"):
        evomerge.merge_state_dicts("linear", base, {"a": {"w": torch.zeros(3, 2)}})
    with pytest.raises(ConfigError, match="needs statistics"):
        evomerge.merge_state_dicts("regmean", base, {"a": {"w": torch.ones(2, 2)}})


def test_plug_ins_are_named_by_the_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess
    import sys

    (tmp_path / "mine.py").write_text(EXAMPLES["A merge method of your own"])
    (tmp_path / "broken.py").write_text("1 / 0")
    command = [sys.executable, "-m", "evomerge", "methods", "median"]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env={**environment, **more}, capture_output=True, text=True, cwd=tmp_path
        )

    assert run().returncode == 2
    assert "entry by entry" in run(EVOMERGE_PLUGINS="mine").stdout
    broken = run(EVOMERGE_PLUGINS="mine,broken")
    assert broken.returncode == 2
    assert "plug-in 'broken' cannot be imported (ZeroDivisionError" in broken.stderr
