"""Signals: smooth numbers for items whose score is 0 or 1."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import CandidateError
from evomerge.scoring.data import Item
from evomerge.scoring.measures import KINDS, Sparsity
from evomerge.scoring.objectives import Objective
from evomerge.scoring.requests import Likelihood, LogLikelihood
from evomerge.scoring.signals import soft, soft_slope

ASKED = ({"role": "user", "content": "2 + 2?"},)
DATA = {"search": "search.jsonl"}


def objective(**spec: Any) -> Objective:
    measure = KINDS[spec["kind"]].model_validate({"name": "it", **spec})
    return Objective("it", "maximise", measure)


def answer() -> Objective:
    return objective(kind="answer", metric="exact_match", max_new_tokens=4, data=DATA)


def test_of_an_answer_it_is_the_log_probability_of_the_reference() -> None:
    item = Item("1", ASKED, answer="4")

    assert answer().has_signal
    assert answer().signal_requests(item) == [LogLikelihood(ASKED, "4", ended=True)]
    assert answer().signal(item, [Likelihood(-1.25, 2, False)]) == -1.25


def test_of_an_empty_answer_nothing_is_asked() -> None:
    item = Item("1", ASKED, answer="")

    assert answer().signal_requests(item) == []
    assert answer().signal(item, []) == 0.0


@pytest.mark.parametrize(
    ("normalise", "expected"),
    # right -6 of 3 tokens and 4 characters, wrong -2 of 1 and 1, and -9 of 3 and 2
    [(None, -6 + 2), ("tokens", -2 + 2), ("characters", -1.5 + 2)],
)
def test_of_a_choice_it_is_the_margin_over_the_best_wrong_one(
    normalise: str | None, expected: float
) -> None:
    choices = objective(kind="choice", normalise=normalise, data=DATA)
    item = Item("1", ASKED, answer="four", choices=("5", "four", "22"))
    responses = [Likelihood(-2, 1, True), Likelihood(-6, 3, False), Likelihood(-9, 3, False)]

    assert choices.signal_requests(item) == choices.requests(item)
    assert choices.signal(item, responses) == expected
    if expected:
        assert choices.score(item, responses).value == float(expected > 0)


def test_an_infinite_one_is_a_broken_candidate() -> None:
    with pytest.raises(CandidateError, match="-inf"):
        answer().signal(Item("1", ASKED, answer="4"), [Likelihood(float("-inf"), 1, False)])


def test_other_kinds_have_none() -> None:
    assert not objective(kind="perplexity", data=DATA).has_signal
    assert not objective(kind="length", max_new_tokens=3, data=DATA).has_signal
    sparse = Objective("s", "maximise", Sparsity(name="s", kind="sparsity"))
    assert not sparse.has_signal
    with pytest.raises(TypeError, match="no signal"):
        sparse.signal_requests(Item("1", ASKED, answer="4"))


def test_soft_scores_are_roots_of_probabilities() -> None:
    assert soft([0.0, math.log(0.25), 3.0]).tolist() == pytest.approx([1.0, 0.5, 1.0])


@given(st.floats(-30, -1e-3))
def test_the_slope_of_a_soft_score_is_its_derivative(signal: float) -> None:
    step = 1e-6
    above, below = soft([signal + step, signal - step])
    assert soft_slope([signal, 1.0]).tolist() == pytest.approx([(above - below) / (2 * step), 0.0])
