"""The loop: budgets, failures, resume after a kill at any moment, refusals."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge.config import Experiment, experiment_from
from evomerge.engine.loop import ATTEMPTS, Loop
from evomerge.engine.pools.inline import InlinePool
from evomerge.engine.study import Study, open_study
from evomerge.engine.tasks import Outcome, Task
from evomerge.errors import CandidateError, InputError, OutputError
from evomerge.ledger.fold import State
from evomerge.ledger.results import front
from evomerge.ledger.store import open_ledger, read_events
from tests.studies import small_experiment

Observer = Callable[[State, int], None]


def run(study: Study, directory: Path, pool: Any = None, observe: Any = None) -> State:
    ledger = open_ledger(directory)
    try:
        return Loop(study, ledger).run(pool or InlinePool(study), observe or (lambda s, n: None))
    finally:
        ledger.close()


def facts(directory: Path) -> list[tuple[Any, ...]]:
    """The ledger without times and durations."""
    return [(e.kind, e.candidate, dict(e.body)) for e in read_events(directory)]


@pytest.fixture(scope="module")
def study(workspace: Path) -> Study:
    return open_study(small_experiment(workspace))


@pytest.fixture(scope="module")
def uninterrupted(study: Study, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    directory = tmp_path_factory.mktemp("uninterrupted")
    run(study, directory)
    return facts(directory)


def test_a_run_scores_references_first_then_the_budget(study: Study, tmp_path: Path) -> None:
    state = run(study, tmp_path)

    assert [c.name for c in state.references()] == [
        "base",
        "adds",
        "names",
        "sorts",
        "weight average",
        "task arithmetic 0.3",
    ]
    assert len(state.searched()) == 10
    assert all(c.status == "scored" for c in state.candidates.values())
    assert state.finished == "budget of 10 candidates is spent"
    first_asked = next(i for i, f in enumerate(facts(tmp_path)) if f[0] == "asked")
    assert sum(f[0] == "scored" for f in facts(tmp_path)[:first_asked]) == 6


def test_front_and_references_are_scored_on_the_held_out_split(
    study: Study, tmp_path: Path
) -> None:
    state = run(study, tmp_path)

    optimise = study.experiment.optimise
    on_front = {c.id for c in front(state.searched(), optimise, study.directions)}
    held = {c.id for c in state.candidates.values() if c.held_out is not None}
    assert held == on_front | {c.id for c in state.references()}
    for candidate in state.candidates.values():
        assert candidate.scores is not None
        assert candidate.scores.values["right"].n == 24
        if candidate.held_out is not None:
            assert candidate.held_out.values["right"].n == 30
            assert candidate.held_out.digest == candidate.scores.digest


def test_the_same_seed_gives_the_same_ledger(
    study: Study, uninterrupted: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    run(study, tmp_path)

    assert facts(tmp_path) == uninterrupted


def test_another_seed_gives_other_candidates(
    workspace: Path, uninterrupted: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    other = open_study(small_experiment(workspace, search={"algorithm": "cma", "seed": 4}))
    run(other, tmp_path)

    def genomes(ledger: list[tuple[Any, ...]]) -> list[Any]:
        return [body["genome"] for kind, _, body in ledger if kind == "asked"]

    assert genomes(facts(tmp_path)) != genomes(uninterrupted)


def test_running_a_finished_study_again_adds_nothing(study: Study, tmp_path: Path) -> None:
    run(study, tmp_path)
    before = facts(tmp_path)
    run(study, tmp_path)

    assert facts(tmp_path) == before


@pytest.mark.parametrize("seed", range(10))
def test_killed_at_a_random_moment_it_resumes_to_the_identical_ledger(
    study: Study, uninterrupted: list[tuple[Any, ...]], tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    for _ in range(dice.randint(1, 3)):  # some runs are killed several times
        kill_after(study, tmp_path, after_events=dice.randint(1, 30))
    run(study, tmp_path)

    assert facts(tmp_path) == uninterrupted


def kill_after(study: Study, directory: Path, after_events: int) -> None:
    """Runs in a child process and kills it with SIGKILL once it has recorded that many events.

    The child goes on while the signal is on its way, so it dies at whatever it is doing then.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            run(study, directory, observe=lambda state, running: os.write(writer, b"."))
        finally:
            os._exit(0)
    os.close(writer)
    heard = 0
    while heard < after_events and os.read(reader, 1):
        heard += 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)


SHORT = {  # so that ten candidates see their models
    "map": {"samples": 4, "batch": 3},
    "map-bayesian": {"samples": 4, "batch": 2, "updates": 1},
    "map-nested": {"samples": 3, "batch": 2},
    "mm-mo": {"startup": 4, "batch": 3},
    "demix": {"samples": 4, "batch": 3, "pool": 100},
}


@pytest.mark.parametrize("algorithm", ["gp", "tpe", "de", "nsga2", "qmc", *SHORT])
def test_every_kind_of_search_resumes_exactly(
    workspace: Path, tmp_path: Path, algorithm: str
) -> None:
    search = {"algorithm": algorithm, "seed": 1, "options": SHORT.get(algorithm, {})}
    study = open_study(small_experiment(workspace, search=search))
    run(study, tmp_path / "whole")
    kill_after(study, tmp_path / "killed", after_events=23)
    run(study, tmp_path / "killed")

    assert facts(tmp_path / "killed") == facts(tmp_path / "whole")


def test_a_larger_budget_continues_a_finished_study(study: Study, tmp_path: Path) -> None:
    run(study, tmp_path)
    run(with_budget(study, candidates=13), tmp_path)

    kinds = [kind for kind, _, _ in facts(tmp_path)]
    assert kinds.count("asked") == 13
    assert kinds.count("finished") == 2


@pytest.mark.parametrize(
    ("budget", "candidates"),
    [({"items": 100}, 3), ({"tokens": 1}, 1), ({"hours": 1e-9}, 0)],
)
def test_budgets_other_than_candidates(
    study: Study, tmp_path: Path, budget: dict[str, Any], candidates: int
) -> None:
    # 48 scored items a candidate (24 for each of two objectives): 100 are spent after the third
    state = run(with_budget(study, **budget), tmp_path)

    assert len(state.searched()) == candidates
    assert next(iter(budget)) in str(state.finished)


def with_budget(study: Study, **budget: Any) -> Study:
    data = {**study.experiment.model_dump(mode="json"), "budget": budget}
    return replace(study, experiment=experiment_from(data))


class Breaking(InlinePool):
    """A pool whose worker fails, or dies, for chosen candidates."""

    def __init__(
        self, study: Study, fails: dict[int, str] | None = None, dies: dict[int, int] | None = None
    ) -> None:
        super().__init__(study)
        self.fails, self.dies = fails or {}, dies or {}

    def wait(self) -> list[Outcome]:
        task: Task = self._tasks[0]
        if task.candidate in self.fails:
            self._tasks.pop(0)
            return [Outcome(task, reason=self.fails[task.candidate])]
        if self.dies.get(task.candidate, 0) > 0:
            self.dies[task.candidate] -= 1
            self._tasks.pop(0)
            return [Outcome(task, reason="worker lost", lost=True)]
        return super().wait()


def test_a_failed_candidate_is_recorded_with_its_reason_and_the_search_goes_on(
    study: Study, tmp_path: Path
) -> None:
    state = run(study, tmp_path, Breaking(study, fails={8: "ValueError: broken", 11: "NaN"}))

    assert state.candidates[8].status == "failed"
    assert state.candidates[8].reason == "ValueError: broken"
    assert len(state.searched()) == 10
    assert sum(c.status == "scored" for c in state.searched()) == 8


def test_a_failed_reference_does_not_end_the_search(study: Study, tmp_path: Path) -> None:
    state = run(study, tmp_path, Breaking(study, fails={2: "out of memory"}))

    assert state.candidates[2].status == "failed"
    assert len(state.searched()) == 10


def test_a_base_that_cannot_be_scored_ends_the_run(study: Study, tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="the base itself cannot be scored: no image"):
        run(study, tmp_path, Breaking(study, fails={0: "no image"}))


def test_a_lost_candidate_is_tried_again_with_the_same_result(
    study: Study, uninterrupted: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    run(study, tmp_path, Breaking(study, dies={7: ATTEMPTS - 1}))

    lost = [fact for fact in facts(tmp_path) if fact[0] == "lost"]
    assert len(lost) == ATTEMPTS - 1
    assert [fact for fact in facts(tmp_path) if fact[0] != "lost"] == uninterrupted


def test_a_candidate_that_kills_every_worker_is_given_up(study: Study, tmp_path: Path) -> None:
    state = run(study, tmp_path, Breaking(study, dies={7: 99}))

    assert state.candidates[7].status == "failed"
    assert state.candidates[7].attempts == ATTEMPTS
    assert len(state.searched()) == 10


def test_an_input_error_of_the_worker_ends_the_run(workspace: Path, tmp_path: Path) -> None:
    # bfloat16 cannot hold the float32 tensors that this space puts out
    space = {
        "method": "task_arithmetic",
        "genes": {"weight": {"per": ["expert"]}},
        "dtype": "float32",
    }
    backend = {"name": "transformers", "dtype": "bfloat16"}
    study = open_study(small_experiment(workspace, space=space, backend=backend))
    with pytest.raises(InputError, match="float32"):
        run(study, tmp_path)


def test_a_directory_of_another_experiment_is_refused(
    study: Study, workspace: Path, tmp_path: Path
) -> None:
    run(study, tmp_path)
    before = facts(tmp_path)
    other = open_study(small_experiment(workspace, search={"algorithm": "random", "seed": 3}))

    with pytest.raises(OutputError, match=r"another experiment.*search"):
        run(other, tmp_path)
    assert facts(tmp_path) == before


def test_the_search_sees_one_number_when_objectives_are_scalarised(
    workspace: Path, tmp_path: Path
) -> None:
    optimise = {
        "maximise": ["right"],
        "minimise": ["surprise"],
        "reference": {"surprise": 9},
        "scalarise": {"rule": "chebyshev", "weights": {"right": 2.0}},
    }
    experiment: Experiment = small_experiment(
        workspace, optimise=optimise, search={"algorithm": "cma-es", "seed": 0}
    )
    state = run(open_study(experiment), tmp_path)

    assert len(state.searched()) == 10
