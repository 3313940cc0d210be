"""Which genes speak of which tensor, and the diagnosis by hand."""

from __future__ import annotations

import math

import pytest
import torch

from evomerge.methods import Context, get_method
from evomerge.methods.elementwise.darwin import diagnosis, genes_ratio
from tests.methods.cases import close, draw, f64, run

KINDS = {"attention": 0.2, "mlp": 0.8, "embedding": 0.0, "head": 0.0}
PARTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def at(module: str, block: int | None = None, blocks: int = 12) -> Context:
    return Context("t", ("a", "b"), module=module, block=block, blocks=blocks)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (at("attention", 0), (0.5 + 0.2 + 0.0) / 3),
        (at("mlp", 11), (0.5 + 0.8 + 0.5) / 3),
        (at("mlp", 5), (0.5 + 0.8 + 0.2) / 3),
        (at("norm", 6), (0.5 + 0.3) / 2),
        (at("embedding"), (0.5 + 0.0) / 2),
        (at("head"), (0.5 + 0.0) / 2),
        (at("norm"), 0.5),
        (at("mlp", 2, blocks=4), (0.5 + 0.8 + 0.3) / 3),  # fewer blocks than genes
    ],
)
def test_the_genes_that_speak_of_a_tensor(where: Context, expected: float) -> None:
    assert genes_ratio(0.5, KINDS, PARTS, where) == pytest.approx(expected)


def test_the_diagnosis_by_hand() -> None:
    # Shares 1/2, 1/4, 1/4: entropy 1.5 ln 2 of ln 3; mean 0, variance 6/3, root mean square > 1.
    expected = 0.4 * 1.5 * math.log(2) / math.log(3) + 0.3 * 2**0.5 / (1 + 2**0.5) + 0.3
    assert diagnosis(torch.tensor([2.0, -1.0, -1.0])) == pytest.approx(expected)
    assert diagnosis(torch.zeros(3, 2)) == 0.0
    assert diagnosis(torch.full((4,), 0.25)) == pytest.approx(0.4 + 0.3 * 0.25)


def test_the_diagnosis_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, _ = draw((30, 7), 1)
    whole = diagnosis(weights)
    monkeypatch.setattr("evomerge.methods.elementwise.darwin._CHUNK", 16)
    assert diagnosis(weights) == pytest.approx(whole, rel=1e-12)


def test_trust_alone_follows_the_diagnosis() -> None:
    base, experts = draw((6, 40), 2)
    experts[1] = experts[1] * 3
    a, b = (diagnosis(expert) for expert in experts)
    assert b > a
    r = b / (a + b)
    found = run(get_method("darwin"), base, experts, trust=1.0, ratio=0.0)
    close(found, (1 - r) * f64(experts[0]) + r * f64(experts[1]))


def test_it_is_diagnosed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base, experts = draw((6, 40), 2)
    made: list[str] = []

    def store(part: str, depends: object, make: object) -> object:
        made.append(part)
        return (1.0, 3.0)

    where = Context("t", ("a", "b"), module="mlp", store=store)
    found = run(get_method("darwin"), base, experts, where, trust=1.0)
    assert "diagnosis" in made
    close(found, 0.25 * f64(experts[0]) + 0.75 * f64(experts[1]))
