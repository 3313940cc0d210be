"""Layer Swapping: which blocks come from whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evomerge.methods import get_method
from tests.methods.cases import context, run

LETTERS = {1.0: "o", 2.0: "i", 1.5: "b"}  # outer, inner, both


def tower(blocks: int, lower: int, upper: int, transition: int) -> str:
    base, outer, inner = (torch.full((2, 2), value) for value in (0.0, 1.0, 2.0))
    method = get_method("layer_swapping")
    values = {"lower": lower, "upper": upper, "transition": transition}
    found = ""
    for block in range(blocks):
        where = replace(context(2), block=block, blocks=blocks)
        merged = run(method, base, [outer, inner], where, **values)
        assert merged.min() == merged.max()
        found += LETTERS[float(merged[0, 0])]
    return found


@pytest.mark.parametrize(
    ("lower", "upper", "transition", "expected"),
    [
        (3, 2, 1, "ooobiiiboo"),
        (3, 2, 0, "oooiiiiioo"),
        (0, 4, 2, "bbiibboooo"),
        (0, 0, 0, "iiiiiiiiii"),
        (0, 0, 1, "biiiiiiiib"),
        (4, 4, 4, "oooobboooo"),
        (4, 6, 2, "oooooooooo"),
        (16, 16, 4, "oooooooooo"),
    ],
)
def test_ten_blocks(lower: int, upper: int, transition: int, expected: str) -> None:
    assert tower(10, lower, upper, transition) == expected


def test_the_defaults_on_32_blocks() -> None:
    method = get_method("layer_swapping")
    values = {p.name: int(p.default) for p in method.parameters}
    assert tower(32, **values) == "ooooob" + "i" * 23 + "b" + "oo"


def test_outside_the_blocks_stands_the_outer_expert() -> None:
    base, outer, inner = (torch.full((3,), value) for value in (0.0, 1.0, 2.0))
    where = replace(context(2), module="norm", blocks=4)
    values = {"lower": 0, "upper": 0}
    assert torch.equal(
        run(get_method("layer_swapping"), base, [outer, inner], where, **values), outer
    )
