"""Methods that call themselves smooth have the derivatives that autograd says."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from evomerge.methods import Method, all_methods
from tests.methods.cases import WIDE, context, draw, fill

SMOOTH = [method for method in all_methods() if method.smooth]
AT = {"inside": (0.4, 0.7, 0.25), "an expert left out": (0.4, 0.0, 0.25), "alike": (0.5,) * 3}
OTHERS: dict[str, float] = {"density": 0.6, "gamma": 0.05, "scale": 0.7, "alpha": 0.3}


@pytest.mark.parametrize(
    ("method", "at"), list(product(SMOOTH, AT.values())), ids=lambda v: getattr(v, "name", None)
)
def test_autograd_is_right(method: Method, at: tuple[float, ...]) -> None:
    base, experts = draw(WIDE, 3)
    known = {p.name for p in method.parameters}
    values = fill(method, 3, **{n: v for n, v in OTHERS.items() if n in known})
    towards = torch.randn(WIDE, generator=torch.Generator().manual_seed(1)).double()

    def along(weight: Any) -> torch.Tensor:
        found = method.merge(
            base.double(), [e.double() for e in experts], context(3), values | {"weight": weight}
        )
        return (found * towards).sum()

    followed = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(along(tuple(followed)), followed)

    step = 1e-4
    for i, slope in enumerate(slopes.tolist()):
        up, down = ([w + s * (i == j) for j, w in enumerate(at)] for s in (step, -step))
        assert slope == pytest.approx(float(along(up) - along(down)) / (2 * step), rel=1e-6)
        assert abs(slope) > 1e-3


def test_those_that_jump_are_not() -> None:
    """An election or a mask that follows the weights changes entries at once."""
    smooth = {method.name for method in SMOOTH}
    assert {"task_arithmetic", "linear", "lines"} <= smooth
    assert not smooth & {"ties", "consensus_ta", "sce", "karcher", "tsv_m", "evo_merging"}
