"""What is particular to the Optuna searches."""

from __future__ import annotations

import logging

import optuna
import pytest

from evomerge.search import make_search
from evomerge.search.algorithms import SearchSettings
from evomerge.search.base import Search
from evomerge.search.testing import apply, record, scores_of

GP = SearchSettings("gp", 1, {"startup": 3})


def test_gp_does_not_ask_its_sampler_while_it_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record(make_search(GP, 2, 1), 2, 1, asks=4)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the sampler was asked")

    monkeypatch.setattr(optuna.samplers.GPSampler, "sample_relative", refuse)
    resumed = make_search(GP, 2, 1)
    for call in calls:
        apply(resumed, call)
    with pytest.raises(AssertionError, match="was asked"):
        resumed.ask([99])


def test_gp_does_not_depend_on_the_number_of_threads() -> None:
    import torch

    threads = torch.get_num_threads()
    records = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            records.append(record(make_search(GP, 2, 2), 2, 2, asks=4))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert records[0] == records[1]


def test_optuna_is_silent_and_its_verbosity_is_left_alone(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    optuna.logging.enable_propagation()
    level = optuna.logging.get_verbosity()
    try:
        with caplog.at_level(logging.DEBUG):
            record(make_search(SearchSettings("tpe", 1), 3, 2), 3, 2, asks=30)
    finally:
        optuna.logging.disable_propagation()
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == level


def only_references(algorithm: str) -> Search:
    search = make_search(SearchSettings(algorithm, 1, {"population": 4}), 6, objectives=2)
    for candidate in range(4):
        search.tell(candidate, (candidate / 4,) * 6, (float(candidate), -float(candidate)))
    return search


@pytest.mark.parametrize("algorithm", ["nsga2", "nsga3"])
def test_nsga_references_are_the_first_population(algorithm: str) -> None:
    children = only_references(algorithm).ask(range(10, 30))
    inherited = [gene for child in children for gene in child if gene in (0.0, 0.25, 0.5, 0.75)]
    # Each gene mutates with probability 1/6; random points would inherit nothing.
    assert len(inherited) > 0.6 * 20 * 6


def test_gp_avoids_the_points_that_are_pending() -> None:
    search = make_search(GP, 2, 1)
    for candidate, gene in enumerate((0.1, 0.3, 0.6, 0.9)):
        search.tell(candidate, (gene, gene), scores_of((gene, gene), 1))
    first, second = search.ask([10, 11])
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 0.01


def test_cma_es_starts_at_the_best_reference() -> None:
    pytest.importorskip("cmaes")
    search = make_search(SearchSettings("cma-es", 1), 5, objectives=1)
    for candidate, gene in enumerate((0.3, 0.7, 1.0)):
        search.tell(candidate, (gene,) * 5, scores_of((gene,) * 5, 1))
    genes = [gene for genome in search.ask(range(10, 40)) for gene in genome]
    assert sum(genes) / len(genes) == pytest.approx(0.3, abs=0.03)
