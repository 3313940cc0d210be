"""Reports of raced and probed candidates: counted, progress by cost, not plotted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.cli.watch import _Lines
from evomerge.engine.loop import Loop
from evomerge.engine.pools.inline import InlinePool
from evomerge.ledger.store import open_ledger, read_events
from evomerge.report.history import history
from evomerge.report.html.data import payload
from evomerge.report.live import Watch, live_view
from evomerge.report.markdown import markdown
from evomerge.report.reproduce import experiment_yaml
from evomerge.report.summary import summarise
from evomerge.report.view import open_view
from evomerge.search.base import Look
from evomerge.tracking.dashboard import Mirror
from tests.engine.racing import ITEMS, driven_by, guided, raced

BUDGET = 8


@pytest.fixture(scope="module")
def raced_run(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    study = raced(workspace, folder, 0.4, budget={"candidates": BUDGET})
    ledger = open_ledger(folder / "run")
    ledger.note({"budget": {"candidates": BUDGET}, "pool": {"name": "inline", "workers": 1}})
    with pytest.MonkeyPatch.context() as patch:
        driven_by(patch, guided(None, None, Look((3,), signal=True)))
        Loop(study, ledger).run(InlinePool(study))
    ledger.close()
    return folder / "run"


def test_the_ledger_has_every_end(raced_run: Path) -> None:
    state = open_view(raced_run).state

    assert all(state.ended(status) for status in ("scored", "dropped", "probed"))


def test_status_counts_them(raced_run: Path) -> None:
    told = json.loads(CliRunner().invoke(app, ["status", str(raced_run), "--json"]).stdout)
    state = open_view(raced_run).state

    assert told["candidates"] == {
        status: state.ended(status)  # type: ignore[arg-type]
        for status in ("pending", "scored", "dropped", "probed", "failed")
    }
    used, limit = told["budget"]["candidates"]
    assert limit == BUDGET
    assert used == state.items / (2 * ITEMS)


def test_live_progress_is_by_cost(raced_run: Path) -> None:
    watch = Watch(raced_run)
    used = []
    for event in read_events(raced_run):
        watch._apply(event)
        used.append(watch.state.evaluations)
    watch.update()
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(live_view(watch, 140, 0.0))
    text = console.export_text()

    assert used == sorted(used)
    assert 0 < used[[e.kind for e in read_events(raced_run)].index("dropped")] < BUDGET
    state = watch.state
    assert f"{state.ended('dropped')} dropped, {state.ended('probed')} probed" in text
    assert watch.pace is not None
    assert watch.pace > 0


def test_plain_lines_name_the_reason_of_a_drop_and_leave_probes_out(raced_run: Path) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    watch = Watch(raced_run)
    _Lines(watch, console, new_only=False).update()
    lines = console.export_text().splitlines()

    state = watch.state
    assert len(lines) == len(state.candidates) - state.ended("probed")
    dropped = [line for line in lines if "dominates it at level 0.4" in line]
    assert len(dropped) == state.ended("dropped")


def test_history_counts_every_part_once(raced_run: Path) -> None:
    view = open_view(raced_run)
    found = history(read_events(raced_run), view.optimise, view.directions)

    spent = found.stages["candidates"]
    assert spent.items == view.state.items
    assert spent.tokens == view.state.tokens
    assert spent.evaluations == view.state.ended("scored")
    parts = [seen for c in view.state.searched() for seen in c.seen]
    assert spent.parts == len(parts)
    timed = sum(
        sum(e.timing.values())
        for e in read_events(raced_run)
        if e.candidate is not None and not view.state.candidates[e.candidate].is_reference
        if e.kind == "seen" and view.state.candidates[e.candidate].status != "scored"
    ) + sum(sum(c.scores.timing.values()) for c in view.state.searched() if c.scores)
    assert sum(spent.seconds.values()) == pytest.approx(timed)
    assert found.steps[-1].evaluations <= BUDGET + 1
    assert [s.evaluations for s in found.steps] == sorted(s.evaluations for s in found.steps)


def test_the_page_counts_them_and_plots_what_was_scored(raced_run: Path) -> None:
    summary = summarise(raced_run)
    page = payload(summary, raced_run, with_examples=False)
    state = summary.view.state

    assert set(page["candidates"]["status"]) == {"scored"}
    assert len(page["candidates"]["ids"]) == len(state.scored())
    assert page["in_part"] == {"dropped": state.ended("dropped"), "probed": state.ended("probed")}
    text = markdown(summary, raced_run)
    assert f"{state.ended('dropped')} more were dropped" in text
    assert f"{state.ended('probed')} were only probed" in text
    assert CliRunner().invoke(app, ["report", str(raced_run)]).exit_code == 0


def test_the_experiment_of_a_report_races_with_the_same_budget(raced_run: Path) -> None:
    text = experiment_yaml(open_view(raced_run))

    assert f"budget:\n  candidates: {BUDGET}\n" in text
    assert "racing:\n    level: 0.4\n" in text


def test_only_what_was_scored_is_exported(raced_run: Path, tmp_path: Path) -> None:
    state = open_view(raced_run).state
    dropped = next(c for c in state.searched() if c.status == "dropped")
    pick = ["--pick", f"#{dropped.id}", "--out", str(tmp_path / "model")]
    result = CliRunner().invoke(app, ["export", str(raced_run), *pick])

    assert result.exit_code != 0
    assert "is dropped: only a scored one is exported" in result.output.replace("\n", " ")


def test_a_dashboard_shows_drops_as_pruned(raced_run: Path) -> None:
    mirror = Mirror(Watch(raced_run))
    states = [trial.state.name for trial in mirror.study.get_trials()]
    state = open_view(raced_run).state

    assert states.count("PRUNED") == state.ended("dropped")
    assert len(states) == sum(
        c.genome is not None and c.status != "probed" for c in state.candidates.values()
    )
