"""Searches whose candidates live on a server: Evo-Merging through responses alone, and faults."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from evomerge.cli.main import app
from evomerge.config import Experiment
from evomerge.engine.loop import Loop
from evomerge.engine.pools.inline import InlinePool
from evomerge.engine.population import Population
from evomerge.engine.study import open_study
from evomerge.engine.tasks import Outcome, Task
from evomerge.errors import ConfigError, InputError
from evomerge.ledger.fold import State
from evomerge.ledger.store import open_ledger, read_events
from tests.merging import lora_expert
from tests.openai_server import OpenAIServer, fingerprint
from tests.studies import EXPERTS, make_workspace, small_experiment, write_experiment

KEY = "sk-not-to-be-seen-anywhere-7361"


class World:
    """A server with skills: it answers right the oftener, the nearer an adapter's size is to one
    that it likes."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder / "base")
        self.folder = folder
        self.waits = 0
        self.down: threading.Thread | None = None
        self._lock = threading.Lock()

        def answer(prompt: list[int], size: float) -> list[int]:
            text = tokenizer.decode(prompt, skip_special_tokens=True)
            words = text.removeprefix("user\n").partition("\n")[0].split()
            luck = int(hashlib.sha256(" ".join(words).encode()).hexdigest()[:8], 16) / 2**32
            right = luck < math.exp(-abs(size - 2000) / 4000)
            return list(tokenizer(f"{words[-1] if right else 'no'}<|im_end|>")["input_ids"])

        self.server = OpenAIServer(answer)

    def settings(self, **changes: Any) -> dict[str, Any]:
        backend = {
            "name": "server",
            "url": self.server.url,
            "model": "base",
            "adapters": str(self.folder / "adapters"),
            "population": 4,
            "concurrency": 8,
            **changes.pop("backend", {}),
        }
        return {
            "backend": backend,
            "space": "evo-merging",
            "optimise": {"maximise": ["right"]},
            "search": {
                "algorithm": "evo-merging",
                "seed": 2,
                "options": {"denoising": 8, "population": 4},
            },
            "budget": {"candidates": 20},
            "objectives": [self.objective()],
            **changes,
        }

    def objective(self) -> dict[str, Any]:
        return {
            "name": "right",
            "kind": "answer",
            "metric": "exact_match",
            "max_new_tokens": 8,
            "data": {"search": "search.jsonl", "held_out": "held_out.jsonl"},
        }

    def experiment(self, **changes: Any) -> Experiment:
        return small_experiment(self.folder, **self.settings(**changes))

    def pause(self, attempt: int, after: float) -> float:
        """In place of the wait between two tries: a server that has fallen comes up again."""
        with self._lock:
            self.waits += 1
            if self.down is not None:
                self.rise()
        return 0.0

    def rise(self) -> None:
        assert self.down is not None
        self.down.join()
        self.server.start()
        self.down = None

    def fall_at(self, request: int) -> None:
        """The server is killed when so many requests have reached it."""

        def strike(path: str) -> None:
            with self._lock:
                if len(self.server.log) == request:
                    self.down = threading.Thread(target=self.server.stop)
                    self.down.start()

        self.server.before = strike


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The usual workspace with LoRA experts, and fewer items."""
    folder = make_workspace(tmp_path_factory.mktemp("lora") / "workspace")
    for split in ("search", "held_out"):
        lines = (folder / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[:10]))
    for seed, name in enumerate(EXPERTS):
        (folder / name).rename(folder / f"full-{name}")
        lora_expert(folder / "base", folder / name, seed, r"layers\.\d+\.(self_attn|mlp)\.")
    return folder


@pytest.fixture
def world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    found = World(folder)
    monkeypatch.setattr("evomerge.backends.server.http._pause", found.pause)
    yield found
    if found.down is None:
        found.server.stop()


def run(experiment: Experiment, directory: Path) -> State:
    study = open_study(experiment)
    pool = InlinePool(study)
    ledger = open_ledger(directory)
    try:
        return Loop(study, ledger).run(pool)
    finally:
        pool.close()
        ledger.close()


def facts(directory: Path) -> list[tuple[Any, ...]]:
    """The ledger without times, durations and what the study is called by."""
    return [
        (e.kind, e.candidate, dict(e.body)) for e in read_events(directory) if e.kind != "study"
    ]


class Quiet(NamedTuple):
    """The ledger of a run that nothing disturbs, and how many requests it took."""

    facts: list[tuple[Any, ...]]
    requests: int


@pytest.fixture(scope="module")
def quiet(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    world, out = World(folder), tmp_path_factory.mktemp("quiet")
    run(world.experiment(), out)
    world.server.stop()
    return Quiet(facts(out), len(world.server.log))


def test_evo_merging_through_responses_alone(world: World, tmp_path: Path) -> None:
    state = run(world.experiment(), tmp_path)
    assert state.finished == "budget of 20 candidates is spent"
    searched = state.searched()
    assert len(searched) == 20
    assert all(c.status == "scored" for c in state.candidates.values())
    genes = [c.genome for c in searched]
    assert len({g[3:] for g in genes[:8] if g}) == 1  # first the densities, at equal weights
    assert len({g[:3] for g in genes[8:] if g}) == 1  # then the weights, at the best densities
    assert len({c.scores.digest for c in searched if c.scores}) == 20
    assert not world.server.adapters
    assert not list((world.folder / "adapters").iterdir())


def test_candidates_of_different_rungs_share_a_batch(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[set[object]] = []
    evaluate = Population._evaluate

    def noted(self: Population, tasks: Sequence[Task]) -> list[Outcome]:
        batches.append({task.part for task in tasks})
        return evaluate(self, tasks)

    monkeypatch.setattr(Population, "_evaluate", noted)
    search = {"algorithm": "random", "seed": 2}
    at_once = run(world.experiment(search=search), tmp_path / "at once")
    assert set().union(*batches) == {None}
    batches.clear()
    raced = run(world.experiment(search={**search, "racing": {"level": 0.5}}), tmp_path / "raced")

    assert any(len(parts) > 1 for parts in batches)
    assert raced.ended("dropped")
    for candidate in raced.searched():
        other = at_once.candidates.get(candidate.id)
        if candidate.scores is not None and other is not None:
            assert other.scores is not None
            assert candidate.scores.body() == other.scores.body()


def test_a_server_that_is_killed_and_restarted_changes_nothing(
    world: World, quiet: Quiet, tmp_path: Path
) -> None:
    world.fall_at(quiet.requests // 2)
    state = run(world.experiment(), tmp_path / "killed")
    assert world.waits
    assert state.finished
    assert facts(tmp_path / "killed") == quiet.facts
    kinds = Counter(kind for kind, _, _ in facts(tmp_path / "killed"))
    assert kinds["scored"] == 20 + 6
    assert kinds["lost"] == kinds["failed"] == 0


def test_a_rough_connection_changes_nothing(world: World, quiet: Quiet, tmp_path: Path) -> None:
    faults = [(429, {"Retry-After": "1"}, ""), (500, {}, "x"), (503, {}, ""), "reset"]

    def trouble(path: str) -> None:
        at = len(world.server.log)
        if at % 7 == 0:
            world.server.faults.append(faults[at // 7 % 4])  # type: ignore[arg-type]

    world.server.before = trouble
    run(world.experiment(), tmp_path / "rough")
    assert world.waits > 20
    assert facts(tmp_path / "rough") == quiet.facts


def test_candidates_lost_with_the_server_are_tried_again(
    world: World, quiet: Quiet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any patience, the batch under way is lost; its candidates come again."""
    world.fall_at(quiet.requests // 2)
    from evomerge.backends.server.backend import ServerBackend

    place = ServerBackend.place

    def place_after_the_crash(backend: ServerBackend, adapters: Any) -> None:
        if world.down is not None:
            world.rise()
        place(backend, adapters)

    monkeypatch.setattr(ServerBackend, "place", place_after_the_crash)
    state = run(world.experiment(backend={"retries": 0}), tmp_path / "lost")
    lost = [candidate for kind, candidate, _ in facts(tmp_path / "lost") if kind == "lost"]
    assert 1 <= len(lost) <= 4
    assert len(set(lost)) == len(lost)
    assert all(c.status == "scored" for c in state.candidates.values())
    assert len(state.searched()) == 20
    told = Counter(fact[:2] for fact in facts(tmp_path / "lost") if fact[0] != "lost")
    assert told == Counter(fact[:2] for fact in quiet.facts)


def test_a_server_that_stays_away_ends_the_run_and_the_same_command_goes_on(
    world: World, quiet: Quiet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fall_at(quiet.requests // 2)
    monkeypatch.setattr("evomerge.backends.server.http._pause", lambda attempt, after: 0.0)
    with pytest.raises(InputError, match=r"start it with .*, then run the same command to go on"):
        run(world.experiment(backend={"retries": 1}), tmp_path / "away")
    before = len(facts(tmp_path / "away"))
    assert 6 < before < len(quiet.facts)
    world.rise()
    world.server.before = lambda path: None
    elsewhere = {"retries": 2, "timeout": 9, "adapters": str(tmp_path / "elsewhere")}
    state = run(world.experiment(backend=elsewhere), tmp_path / "away")
    assert state.finished
    assert all(c.status == "scored" for c in state.candidates.values())
    told = Counter(fact[:2] for fact in facts(tmp_path / "away") if fact[0] != "lost")
    assert told == Counter(fact[:2] for fact in quiet.facts)


def test_a_candidate_on_which_the_server_fails_is_failed_alone(
    world: World, tmp_path: Path
) -> None:
    real, loaded = world.server.reply, itertools.count(1)
    bad: list[float] = []

    def reply(path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/load_lora_adapter" and next(loaded) == 20:  # after probes and references
            bad.append(fingerprint(Path(body["lora_path"])))
        if body and world.server.adapters.get(body.get("model")) in bad:
            return 500, {"error": {"message": "Out of range float values are not JSON compliant"}}
        return real(path, body)

    world.server.reply = reply  # type: ignore[method-assign]
    state = run(world.experiment(), tmp_path)
    failed = [c for c in state.searched() if c.status == "failed"]
    assert len(failed) == 1
    assert "not JSON compliant" in str(failed[0].reason)
    assert len([c for c in state.searched() if c.status == "scored"]) == 19


def test_neither_the_run_directory_nor_what_is_printed_holds_the_key(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SERVER_KEY", KEY)
    world.server.key = KEY
    caplog.set_level(logging.DEBUG)
    settings = world.settings(backend={"key_env": "SERVER_KEY"}, budget={"candidates": 12})
    file = write_experiment(world.folder, "guarded.yaml", **settings)
    out = tmp_path / "run"

    def invoke(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        return f"{result.exit_code}: {result.output}{result.stderr}"

    told = [invoke("run", file, "--out", out), invoke("status", out), invoke("front", out)]
    assert all(text.startswith("0: ") for text in told), told
    echo = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}})
    world.server.faults.extend([(401, {}, echo)] * 2)
    told.append(invoke("run", file, "--out", tmp_path / "refused"))
    assert "2: error" in told[-1]
    assert "provided: ***" in told[-1]
    told.append(invoke("report", out, "--out", tmp_path / "report.html"))
    assert KEY not in "".join(told) + caplog.text
    assert {h["Authorization"] for _, _, h in world.server.log} == {f"Bearer {KEY}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".sqlite" or "ledger" in path.name for path in files), files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"key_env": KEY}, "key_env: expected the name of an environment variable"),
        ({"url": f"http://user:{KEY}@127.0.0.1"}, "url: expected an address without user"),
        ({"url": f"http://127.0.0.1/v1?key={KEY}"}, "url: expected an address without user"),
        ({"url": "file:///etc/passwd"}, "url: expected an address such as http"),
        ({"url": "127.0.0.1:8000"}, "url: expected an address such as http"),
        ({"key": KEY}, "unknown key 'backend.key'; did you mean 'key_env'"),
    ],
)
def test_settings_that_are_refused_are_not_repeated(
    world: World, given: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=r"small\.yaml") as refused:
        world.experiment(backend=given)
    assert message in str(refused.value)
    assert KEY not in str(refused.value)


def test_full_fine_tunes_have_no_adapters(world: World) -> None:
    experts = {name: f"full-{name}" for name in EXPERTS}
    with pytest.raises(ConfigError, match=r"is a full checkpoint; use a backend that takes"):
        run(world.experiment(experts=experts), world.folder / "never")
