"""A drafted experiment: the rules, and that what is written runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.config import load_experiment
from evomerge.draft import kind_of, new_tokens, task_of
from evomerge.engine.study import open_study
from evomerge.errors import DataError
from evomerge.estimate import _made
from evomerge.scoring.data import Item, content_key, load_items
from tests.cli.test_commands import invoke
from tests.studies import settings, small_experiment, write_experiment


def items(*answers: str, choices: tuple[str, ...] | None = None) -> list[Item]:
    asked = ({"role": "user", "content": "?"},)
    return [Item(str(i), asked, answer, choices) for i, answer in enumerate(answers)]


def jsonl(path: Path, rows: list[dict]) -> Path:  # type: ignore[type-arg]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (items("12", "-3.5", "1,000"), "numeric"),
        (items("12", "twelve"), "exact_match"),
        (items("12 apples", "3"), "exact_match"),
        (items("a", "b", choices=("a", "b")), "choice"),
        (items("yes", "word " * 13), "perplexity"),
        (items("yes", "word " * 12), "exact_match"),
    ],
)
def test_kinds_follow_the_answers(found: list[Item], kind: str) -> None:
    assert kind_of(found) == kind


def test_room_for_the_answer() -> None:
    def tokenizer(text: str) -> dict[str, list[str]]:
        return {"input_ids": text.split()}

    assert new_tokens(["a"], tokenizer) == 8
    assert new_tokens(["a", "a b c d e"], tokenizer) == 16  # 1.5 * 5 + 1 = 8.5


def test_questions_are_split_and_never_on_both_sides(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i % 60}", "answer": "x"} for i in range(90)]  # 30 asked twice
    task = task_of("t", jsonl(tmp_path / "t.jsonl", rows))
    search = {content_key(i) for i in task.search}
    held_out = {content_key(i) for i in task.held_out}

    assert len(search) == len(held_out) == 30
    assert not search & held_out
    assert len(task.search) + len(task.held_out) == 90
    again = task_of("t", jsonl(tmp_path / "again.jsonl", rows[::-1]))
    assert {content_key(i) for i in again.search} == search


def test_a_large_file_gives_two_hundred_to_the_search(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "answer": "x"} for i in range(500)]
    task = task_of("t", jsonl(tmp_path / "t.jsonl", rows))
    assert (len(task.search), len(task.held_out)) == (200, 300)


def test_few_items_are_all_searched_on(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "answer": "x"} for i in range(19)]
    task = task_of("t", jsonl(tmp_path / "t.jsonl", rows))
    assert (len(task.search), len(task.held_out)) == (19, 0)


def test_an_item_without_an_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no reference answer"):
        task_of("t", jsonl(tmp_path / "t.jsonl", [{"prompt": "?"}]))


def test_what_is_written_runs(workspace: Path, tmp_path: Path) -> None:
    numbers = [{"prompt": f"{i} plus 1?", "answer": str(i + 1), "topic": "sums"} for i in range(24)]
    long = [{"prompt": f"tell {i}", "answer": f"{i} " + "la " * 13} for i in range(24)]
    out = tmp_path / "drafted"
    printed = invoke(
        "init",
        *("--base", workspace / "base", "--out", out, "--candidates", "1"),
        *("--expert", f"adds={workspace / 'adds'}", "--expert", f"sorts={workspace / 'sorts'}"),
        *("--data", jsonl(tmp_path / "sums.jsonl", numbers)),
        *("--data", f"prose={jsonl(tmp_path / 'p.jsonl', long)}"),
    )
    assert "a candidate takes" in printed
    assert "search: gp, as a budget of 1 leaves no room for probes" in printed
    written = yaml.safe_load((out / "experiment.yaml").read_text())
    assert written["optimise"] == {
        "maximise": ["sums"],
        "minimise": ["prose"],
        "reference": {"prose": 100.0},
    }
    assert written["search"] == {"algorithm": "auto", "seed": 0}
    kinds = [o["kind"] for o in written["objectives"]]
    assert kinds == ["answer", "perplexity"]
    study = open_study(load_experiment(out))
    assert study.space.dimension == 2 * 2 * 2  # experts, blocks, attention and mlp
    kept = [i.extra for i in load_items(out / "sums-search.jsonl")]
    assert kept == [{"topic": "sums"}] * 12

    ran = invoke("run", out, "--out", tmp_path / "run")
    assert ran.startswith("search: gp, as a budget of 1 leaves no room for probes")
    assert "budget of 1 candidates is spent" in ran
    again = CliRunner().invoke(
        app, ["init", "--base", "b", "--expert", "a=b", "--data", "c", "--out", str(out)]
    )
    assert again.exit_code == 2


def test_images_are_found_from_the_new_folder(tmp_path: Path) -> None:
    from PIL import Image

    from evomerge.draft import write_draft

    (tmp_path / "data").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "data" / "a.png")
    content = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]
    rows = [{"messages": [{"role": "user", "content": content}], "answer": "black"}]
    task = task_of("t", jsonl(tmp_path / "data" / "t.jsonl", rows))
    write_draft(tmp_path / "out", "", [task])
    assert load_items(tmp_path / "out" / "t-search.jsonl") == list(task.search)


def test_the_estimate_of_an_experiment(workspace: Path) -> None:
    printed = invoke("validate", "quickstart")
    assert "memory: a worker holds" in printed
    assert "a candidate takes" not in printed


def test_validate_shows_what_auto_chooses_and_why(workspace: Path) -> None:
    auto = write_experiment(workspace, "auto.yaml", search={"seed": 1})
    printed = " ".join(invoke("validate", auto).split())
    assert "search gp: Bayesian optimisation" in printed
    assert "chosen by auto, as 48 items are too few to be looked at in parts" in printed
    assert "chosen by auto" not in invoke("validate", write_experiment(workspace, "named.yaml"))


def test_probes_are_merges_too(workspace: Path) -> None:
    """First 36 probes of a twentieth of the items; then 24 such for each score."""
    search = {"algorithm": "guided", "options": {"probes": 24, "startup": 36}}
    guided = open_study(small_experiment(workspace, search=search))  # 24 items: 20 blocks
    assert _made(guided, 10) == pytest.approx(36 + (10 - 36 / 20) * 25 / (24 / 20 + 1))
    assert _made(guided, 1) == pytest.approx(20)  # all of it goes into the first probes
    assert _made(open_study(small_experiment(workspace)), 10) == 10


def test_probes_with_slopes_count_three_times_and_need_fewer(workspace: Path) -> None:
    """First 20 probes of 3/20 of the items; then 4 such for each score."""
    space = {"method": "task_arithmetic", "genes": {"weight": {"per": ["expert"]}}}
    objectives = settings()["objectives"][:1]

    def made(candidates: float, backend: str = "transformers", **options: object) -> float:
        search = {"algorithm": "guided", "options": options}
        changes = {
            "space": space,
            "objectives": objectives,
            "optimise": {"maximise": ["right"]},
            "search": search,
            "backend": {"name": backend},
        }
        return _made(open_study(small_experiment(workspace, **changes)), candidates)

    assert made(10) == pytest.approx(20 + (10 - 20 * 3 / 20) * 5 / (4 * 3 / 20 + 1))
    assert made(10, startup=12, probes=2) == pytest.approx(12 + (10 - 36 / 20) * 3 / (6 / 20 + 1))
    assert made(1) == pytest.approx(20 / 3)  # all of it goes into the first probes
    assert made(10, probes=0) == 10
    without = 60 + (10 - 60 / 20) * 21 / (20 / 20 + 1)
    assert made(10, slopes=False) == pytest.approx(without)
    assert made(10, signal=False) == pytest.approx(without)
    assert made(10, backend="fake") == pytest.approx(without)
