"""A run as an Optuna study in memory, for optuna-dashboard."""

from __future__ import annotations

import threading
import warnings
from typing import Any

from evomerge.errors import MissingDependency
from evomerge.ledger.fold import Candidate
from evomerge.report.live import Watch
from evomerge.report.view import View


class Mirror:
    """An Optuna study that holds the run's candidates and reference points that lie in the space.

    It lives in memory and is made from the ledger anew each time, so nothing of it can be stale.
    """

    def __init__(self, watch: Watch) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._watch, self._told = optuna, watch, set[int]()
        watch.update()
        view = watch.view()
        names = view.optimise.names
        self.storage = optuna.storages.InMemoryStorage()
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=view.name,
            directions=["maximize" if view.sign(n) > 0 else "minimize" for n in names],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.set_metric_names(list(names))
        self.distributions = {
            gene.name: optuna.distributions.FloatDistribution(gene.low, gene.high, log=gene.log)
            for gene in view.space.genes
        }
        self.update()

    def update(self) -> int:
        """Adds what has been scored or has failed since; returns how many trials there are."""
        self._watch.update()
        view = self._watch.view()
        for candidate in self._watch.state.candidates.values():
            if candidate.status in ("pending", "probed") or candidate.id in self._told:
                continue
            self._told.add(candidate.id)
            if candidate.genome is not None:
                self.study.add_trial(self._trial(view, candidate))
        return len(self.study.get_trials(deepcopy=False))

    def _trial(self, view: View, candidate: Candidate) -> Any:
        assert candidate.genome is not None
        scored = candidate.scores is not None
        names = view.optimise.names
        values = [v.value for n in names if (v := view.value(candidate, n)) is not None]
        states = self._optuna.trial.TrialState
        ends = {"scored": states.COMPLETE, "dropped": states.PRUNED, "failed": states.FAIL}
        return self._optuna.trial.create_trial(
            state=ends[candidate.status],
            values=values if scored else None,
            params=view.space.decode(candidate.genome),
            distributions=self.distributions,
            user_attrs={
                "candidate": candidate.label,
                **({"reason": candidate.reason} if candidate.reason else {}),
                **{
                    f"{split} {name}": round(v.value, 6)
                    for split in ("search", "held_out")
                    for name in view.columns
                    if (v := view.value(candidate, name, split)) is not None
                },
            },
        )


def serve(watch: Watch, port: int, seconds: float = 5.0) -> None:
    """Serves optuna-dashboard of a run on the loopback interface until it is interrupted.

    Raises:
        MissingDependency: optuna-dashboard is not installed.
    """
    try:
        from optuna_dashboard import run_server
    except ImportError as error:
        raise MissingDependency(
            "optuna-dashboard is not installed: pip install 'evomerge[dashboard]'"
        ) from error
    mirror = Mirror(watch)
    ended = threading.Event()

    def keep_up() -> None:
        while not ended.wait(seconds) and not watch.state.finished:
            mirror.update()

    follower = threading.Thread(target=keep_up, name="mirror", daemon=True)
    follower.start()
    try:
        run_server(mirror.storage, host="127.0.0.1", port=port)
    finally:
        ended.set()
