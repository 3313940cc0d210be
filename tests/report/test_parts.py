"""What the forms of the report are computed from: grids, history, importance, reproduction."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.config import Optimise, load_experiment, load_space
from evomerge.content import known
from evomerge.grouping import Cell
from evomerge.ledger.events import Event
from evomerge.recipe import Source
from evomerge.report.coefficients import grids, value
from evomerge.report.history import history
from evomerge.report.importance import Group, groups_of, importance
from evomerge.report.markdown import markdown
from evomerge.report.reproduce import experiment_yaml
from evomerge.report.summary import summarise
from evomerge.report.view import open_view
from evomerge.space import Space

# --- grids -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(known("search_spaces")))
def test_grids_show_the_values_that_the_recipe_gets(name: str) -> None:
    spec = load_space(name, Path("nowhere"))
    cells = tuple(
        Cell(f"language/{i}/{kind}", f"language/{kind}", i / 6)
        for kind in ("attention", "mlp")
        for i in range(7)
    )
    space = Space(spec, Source(path="base"), {n: Source(path=n) for n in "ba"}, cells)
    genome = np.random.default_rng(3).random(space.dimension).tolist()
    wanted = {group.tensors: group.values for group in space.recipe(genome).parameters}
    seen = set()
    for grid in grids(space):
        for block in grid.blocks:
            for expert, spots in zip(grid.rows, block.spots, strict=True):
                for label, spot in zip(block.labels, spots, strict=True):
                    module = block.name.rpartition("/")[2]
                    at = next(iter(wanted)) if label == "all" else f"language/{label}/{module}"
                    expected = wanted[at][grid.parameter]
                    found = value(space.genes, genome, spot)
                    shown = round(found) if grid.whole else found
                    assert shown == (expected if expert is None else expected[expert])
                    seen |= {spot.first, spot.second}
    assert seen == set(range(space.dimension))  # every gene is somewhere


# --- history ---------------------------------------------------------------------------------


def scored(kind: str, id: int, up: float, down: float, at: float, session: int = 1) -> Event:
    body = {
        "digest": "d",
        "values": {"up": [up, 0.1, 4], "down": [down, 0.1, 4]},
        "items": {"up": [1.0] * 4, "down": [0.0] * 3},
        "tokens": 10,
        "weights": {},
    }
    return Event(kind, id, body, {"instantiate": 1.0, "score": 2.0}, at, session)  # type: ignore[arg-type]


def asked(id: int, at: float, session: int = 1) -> Event:
    return Event("asked", id, {"genome": [0.5]}, {}, at, session)


OPTIMISE = Optimise(maximise=("up",), minimise=("down",), reference={"down": 2.0})
DIRECTIONS = {"up": "maximise", "down": "minimise"}


def test_history_counts_time_of_sessions_items_and_hypervolume() -> None:
    events = [
        Event("study", body={}, time=100.0, session=1),
        Event("reference", 0, {"name": "base", "genome": None}, {}, 101.0, 1),
        scored("scored", 0, 0.5, 1.0, 105.0),
        asked(1, 106.0),
        scored("scored", 1, 0.5, 1.0, 110.0),  # dominates 0.5 × 1
        asked(2, 111.0),
        Event("lost", 2, {"reason": "killed"}, {}, 112.0, 1),
        scored("scored", 2, 0.4, 1.5, 1000.0, session=2),  # dominated
        asked(3, 1001.0, session=2),
        scored("scored", 3, 1.0, 1.5, 1004.0, session=2),  # adds 0.5 × 0.5
        scored("held_out", 3, 0.9, 1.5, 1006.0, session=2),
    ]
    found = history(events, OPTIMISE, DIRECTIONS)

    assert [s.candidate for s in found.steps] == [1, 2, 3]
    assert [s.items for s in found.steps] == [7, 14, 21]
    assert [s.seconds for s in found.steps] == [10.0, 12.0, 16.0]  # not the pause between them
    np.testing.assert_allclose([s.hypervolume for s in found.steps], [0.5, 0.5, 0.75])
    assert (found.sessions, found.lost, found.wall) == (2, 1, 18.0)
    assert found.stages["reference points"].evaluations == 1
    assert found.stages["candidates"].seconds == {"instantiate": 3.0, "score": 6.0}
    assert found.stages["held-out split"].tokens == 10
    assert (found.busy, found.idle) == (15.0, 3.0)


def test_overlapping_evaluations_leave_the_waiting_unknown() -> None:
    events = [Event("study", body={}, time=0.0, session=1)]
    events += [asked(i, 0.0) for i in range(4)]
    events += [scored("scored", i, 0.5, 1.0, 4.0) for i in range(4)]
    found = history(events, OPTIMISE, DIRECTIONS)
    assert (found.busy, found.wall, found.idle) == (12.0, 4.0, None)


# --- importance ------------------------------------------------------------------------------


def single(count: int) -> list[Group]:
    return [Group("gene", str(i), (i,)) for i in range(count)]


def test_importance_finds_the_genes_that_a_target_depends_on() -> None:
    genomes = np.random.default_rng(0).random((200, 12))
    values = np.stack([3 * genomes[:, 4], -(genomes[:, 7] ** 2), np.ones(200)], axis=1)
    pair = Group("expert", "both", (4, 7))
    found = importance(genomes, values, ("a", "b", "flat"), [*single(12), pair])

    assert found is not None
    assert found.targets == ("a", "b")  # what does not vary has nothing to explain
    assert (found.explained > 0.7).all()
    assert found.mean[:12, 0].argmax() == 4
    assert found.mean[:12, 1].argmax() == 7
    others = np.delete(found.mean[:12], [4, 7], axis=0)
    assert (np.abs(others) < 0.1).all()
    assert found.mean[12, 0] > 0.8 * found.mean[4, 0]
    again = importance(genomes, values, ("a", "b", "flat"), [*single(12), pair])
    assert again is not None
    np.testing.assert_array_equal(again.mean, found.mean)


def test_importance_owns_up_to_noise() -> None:
    generator = np.random.default_rng(1)
    found = importance(generator.random((80, 6)), generator.random((80, 1)), ("a",), single(6))
    assert found is not None
    assert found.explained[0] < 0.1
    few = importance(generator.random((19, 6)), generator.random((19, 1)), ("a",), single(6))
    assert few is None
    flat = importance(generator.random((80, 6)), np.ones((80, 1)), ("a",), single(6))
    assert flat is None


def test_genes_are_grouped_by_expert_layer_and_module() -> None:
    cells = tuple(
        Cell(f"language/{i}/{kind}", f"language/{kind}", float(i))
        for kind in ("attention", "mlp")
        for i in range(2)
    )
    spec = load_space("layerwise-task-arithmetic", Path("nowhere"))
    space = Space(spec, Source(path="base"), {n: Source(path=n) for n in "ba"}, cells)
    found = {(g.kind, g.label): g.genes for g in groups_of(grids(space), "abcdefgh")}

    # genes go by group, and within it by expert
    assert [g.name for g in space.genes][:3] == [
        "weight[b] language/0/attention",
        "weight[a] language/0/attention",
        "weight[b] language/1/attention",
    ]
    assert found["expert", "b"] == (0, 2, 4, 6)
    assert found["layer", "1"] == (2, 3, 6, 7)
    assert found["module", "language/mlp"] == (4, 5, 6, 7)
    assert ("parameter", "weight") not in found  # the only one is everything
    assert found["gene", "c"] == (2,)


# --- reproduction, Markdown, figures ---------------------------------------------------------


def test_the_experiment_in_the_report_is_the_same_study(run: Path, tmp_path: Path) -> None:
    view = open_view(run)
    (tmp_path / "again.yaml").write_text(experiment_yaml(view))
    again = load_experiment(tmp_path / "again.yaml")

    recorded = dict(view.study["experiment"])
    identity = again.identity()
    files = [o["inline"].pop("data") for o in identity.pop("objectives")]
    before = [dict(o["inline"]) for o in recorded.pop("objectives")]
    assert files == [
        {split: str(run.parent / name) for split, name in o.pop("data").items()} for o in before
    ]
    assert identity == recorded
    assert again.budget.candidates == len(view.state.searched())


def test_markdown_has_every_point_and_no_markup_of_others(run: Path) -> None:
    summary = summarise(run)
    text = markdown(summary, run)
    table = text[: text.index("## Progress")]
    for candidate in (*summary.front, *summary.view.state.references()):
        assert re.search(rf"^\| \**{re.escape(candidate.label)}", table, re.MULTILINE)
    assert "<script" not in text[: text.index("```yaml")]
    assert "onerror" in text[text.index("## Failures") :]
    yaml.safe_load(text[text.index("```yaml") + 7 : text.rindex("```")])


def test_figures_are_written_and_the_same_each_time(run: Path, tmp_path: Path) -> None:
    for form, out in (("png", "a"), ("svg", "b"), ("svg", "c")):
        arguments = ["report", str(run), "--format", form, "--out", str(tmp_path / out)]
        assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    for name in ("front", "hypervolume", "heatmap"):
        with Image.open(tmp_path / "a" / f"{name}.png") as image:
            assert min(image.size) > 200
            assert len(image.convert("L").getcolors() or []) > 10
        once, again = ((tmp_path / out / f"{name}.svg").read_bytes() for out in "bc")
        assert once == again


def test_reading_for_a_report_loads_no_torch(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from evomerge.report.summary import summarise;"
        f"summarise(Path({str(run)!r}), with_importance=False);"
        "print([m for m in ('torch', 'transformers', 'ray', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.strip() == "[]"
