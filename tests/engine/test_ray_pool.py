"""The Ray pool: every candidate accounted for, also when a worker process is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.config import experiment_from
from evomerge.engine.loop import Loop
from evomerge.engine.pools.ray import RayPool
from evomerge.engine.study import Study, open_study
from evomerge.errors import ConfigError
from evomerge.ledger.fold import State
from evomerge.ledger.store import open_ledger, read_events
from tests.engine.racing import raced
from tests.studies import small_experiment

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of several kinds


@pytest.fixture(scope="module")
def study(workspace: Path) -> Study:
    return open_study(small_experiment(workspace, pool={"name": "ray", "workers": 2, "cpus": 0.5}))


@pytest.fixture(scope="module")
def pool(study: Study) -> Iterator[RayPool]:
    pool = RayPool(study)
    yield pool
    pool.close()


def run(study: Study, pool: RayPool, directory: Path, observe=lambda s, n: None) -> State:  # type: ignore[no-untyped-def]
    ledger = open_ledger(directory)
    try:
        return Loop(study, ledger).run(pool, observe)
    finally:
        ledger.close()


def outcomes(directory: Path) -> list[int | None]:
    return sorted(e.candidate or 0 for e in read_events(directory) if e.kind == "scored")


def test_two_workers_score_the_same_reference_points_as_one_process(
    study: Study, pool: RayPool, workspace: Path, tmp_path: Path
) -> None:
    from evomerge.engine.pools.inline import InlinePool

    state = run(study, pool, tmp_path / "ray")
    data = {**study.experiment.model_dump(mode="json"), "pool": {"name": "inline"}}
    alone = open_study(experiment_from(data))
    ledger = open_ledger(tmp_path / "inline")
    single = Loop(alone, ledger).run(InlinePool(alone))
    ledger.close()

    assert outcomes(tmp_path / "ray") == outcomes(tmp_path / "inline") == list(range(16))
    for a, b in zip(state.references(), single.references(), strict=True):
        assert a.scores is not None and b.scores is not None  # noqa: PT018
        assert a.scores.body() == b.scores.body()


def test_a_cluster_of_our_own_listens_on_the_loopback_interface_only(pool: RayPool) -> None:
    tables = [Path(f"/proc/{os.getpid()}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    listening = [row.split() for table in tables for row in table.splitlines()[1:]]
    ports = {int(node["NodeManagerPort"]) for node in pool._cluster.ray.nodes()}
    hosts = {r[1][:-5] for r in listening if r[3] == "0A" and int(r[1][-4:], 16) in ports}

    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000"}
    assert hosts
    assert hosts <= loopback


def test_workers_that_never_fit_are_refused_at_once(pool: RayPool, workspace: Path) -> None:
    greedy = {"name": "ray", "workers": 2, "cpus": 1000}
    with pytest.raises(ConfigError, match="room for 0 workers of 1000 CPU, expected 2"):
        RayPool(open_study(small_experiment(workspace, pool=greedy)))


def test_two_workers_take_every_rung_once_and_a_lost_one_repeats_only_its_own(
    workspace: Path, tmp_path: Path, pool: RayPool
) -> None:
    changes = {"pool": {"name": "ray", "workers": 2, "cpus": 0.5}, "budget": {"candidates": 6}}
    raced_study = raced(workspace, tmp_path, 0.4, **changes)
    own = RayPool(raced_study)
    killed: list[int] = []

    def kill(state: State, running: int) -> None:
        """Kills a busy worker once, while the second rung of a candidate is under way."""
        under_way = [c for c in state.pending() if len(c.seen) == 1]
        if not killed and under_way and own.busy():
            killed.append(own.busy()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    try:
        state = run(raced_study, own, tmp_path / "run", kill)
    finally:
        own.close()

    assert killed
    events = read_events(tmp_path / "run")
    assert sum(e.kind == "lost" for e in events) <= 1
    for candidate in state.searched():
        blocks = [seen.part.blocks for seen in candidate.seen]
        assert blocks == [(0, 1), (2, 3, 4), tuple(range(5, 10))][: len(blocks)]
        assert candidate.status in ("scored", "dropped")
        assert (len(blocks) == 3) or candidate.status == "dropped"
    assert {c.status for c in state.searched()} == {"scored", "dropped"}
