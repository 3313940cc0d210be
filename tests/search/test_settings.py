"""The table of algorithms, and the settings it refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from evomerge.errors import ConfigError, IntegrityError, MissingDependency
from evomerge.search import make_search
from evomerge.search.algorithms import ALGORITHMS, SearchSettings
from evomerge.search.base import check_replay


def test_the_table_needs_none_of_the_libraries() -> None:
    code = (
        "import sys, evomerge.search.algorithms as table; assert 'cma' in table.ALGORITHMS;"
        "print([m for m in ('torch', 'optuna', 'nevergrad', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rows_are_named_and_their_defaults_are_in_range() -> None:
    for name, algorithm in ALGORITHMS.items():
        assert algorithm.name == name
        for option in algorithm.options.values():
            assert option.default is None or option.low <= option.default <= option.high


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SearchSettings("cmma", 1), "'cmma' is unknown; did you mean 'cma'"),
        (SearchSettings("xxxxx", 1), "known: auto, cma, diagonal-cma"),
        (SearchSettings("cma", 1, {"sigmas": 0.1}), "no option 'sigmas'; did you mean 'sigma'"),
        (SearchSettings("random", 1, {"sigma": 0.1}), "known: none"),
        (SearchSettings("cma", 1, {"sigma": 1.5}), "cma.sigma is 1.5; expected float from 0.0001"),
        (SearchSettings("cma", 1, {"sigma": float("nan")}), "cma.sigma is nan"),
        (SearchSettings("cma", 1, {"population": 5.0}), "expected int from 3"),
        (SearchSettings("de", 1, {"population": None}), "de.population is None"),
        (SearchSettings("de", 1, {"population": True}), "de.population is True"),
        (SearchSettings("gp", 1, {"deterministic": 1}), "expected true or false"),
        (SearchSettings("cma", -1), "seed -1: expected 0 or greater"),
        (SearchSettings("cma-es", 1), "takes one objective, not 2; use 'cma' or 'gp'"),
    ],
)
def test_wrong_settings_are_refused(settings: SearchSettings, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_search(settings, dimension=3, objectives=2)
    assert message in str(refused.value)


def test_whole_numbers_are_good_floats() -> None:
    make_search(SearchSettings("cma", 1, {"sigma": 1}), dimension=3, objectives=2)


def test_cma_es_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="pip install cmaes"):
        make_search(SearchSettings("cma-es", 1), dimension=3, objectives=1)


def test_check_replay_names_the_gene() -> None:
    check_replay(7, (0.1, 0.2), (0.1, 0.2))
    with pytest.raises(IntegrityError, match=r"candidate 7: gene 1 was recorded as 0\.2"):
        check_replay(7, (0.1, 0.2), (0.1, 0.25))
    with pytest.raises(IntegrityError, match="2 genes were recorded, but asking again gives 0"):
        check_replay(7, (0.1, 0.2), ())
