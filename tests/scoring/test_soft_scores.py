"""Soft scores and how they change with the log-probabilities that they are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from evomerge.scoring.data import Item
from evomerge.scoring.measures import KINDS
from evomerge.scoring.objectives import Objective
from evomerge.scoring.requests import Likelihood
from evomerge.scoring.signals import soft_gradient

ASKED = ({"role": "user", "content": "2 + 2?"},)
DATA = {"search": "search.jsonl"}


def likelihoods(*logprobs: float) -> list[Likelihood]:
    return [Likelihood(logprob, n, False) for n, logprob in enumerate(logprobs, 1)]


def gradient(item: Item, responses: Sequence[Likelihood], **written: object) -> list[float]:
    measure = KINDS[str(written["kind"])].model_validate({"name": "it", "data": DATA, **written})
    objective = Objective("it", "maximise", measure)
    return soft_gradient(lambda found: objective.signal(item, found), responses)


def test_of_an_answer_it_is_half_its_soft_score() -> None:
    """d/ds exp(s/2)."""
    item = Item("1", ASKED, "4")
    found = gradient(item, likelihoods(-1.5), kind="answer", metric="exact_match", max_new_tokens=1)

    assert found == [pytest.approx(math.exp(-0.75) / 2, rel=1e-9)]


@pytest.mark.parametrize("normalise", [None, "tokens"])
def test_of_a_choice_it_is_that_of_the_right_and_the_best_wrong_one(normalise: str | None) -> None:
    item = Item("1", ASKED, "5", ("4", "5", "22"))
    responses = likelihoods(-1.0, -4.0, -9.0)  # of 1, 2 and 3 tokens
    lengths = (1, 2, 3) if normalise else (1, 1, 1)
    signal = -4.0 / lengths[1] + 1.0
    steep = math.exp(signal / 2) / 2

    found = gradient(item, responses, kind="choice", normalise=normalise)

    assert found == pytest.approx([-steep, steep / lengths[1], 0.0], rel=1e-9)


def test_of_a_right_choice_it_is_0() -> None:
    item = Item("1", ASKED, "4", ("4", "5"))
    assert gradient(item, likelihoods(-1.0, -2.0), kind="choice") == [0.0, 0.0]
