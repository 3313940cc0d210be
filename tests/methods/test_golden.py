"""Each method against its formula in float64 (see ``golden``)."""

from __future__ import annotations

import pytest

from evomerge.methods import all_methods, get_method
from tests.methods.golden import SHAPES, Golden, all_golden, counts, error

CASES = [
    pytest.param(
        case, shape, count, low_rank, id=f"{case.method}-{i}-{shape}-{count}{'-lora' * low_rank}"
    )
    for i, case in enumerate(all_golden())
    for shape in SHAPES
    for count in counts(get_method(case.method))
    for low_rank in ([False, True] if case.low_rank else [False])
]


@pytest.mark.parametrize(("case", "shape", "count", "low_rank"), CASES)
def test_golden(case: Golden, shape: tuple[int, int], count: int, low_rank: bool) -> None:
    assert error(case, shape, count, low_rank) <= case.tolerance


def test_every_method_has_a_formula() -> None:
    assert {case.method for case in all_golden()} == {m.name for m in all_methods()}
