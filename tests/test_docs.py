"""Pages that are made from the code, and whether they still tell the truth."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.methods import all_methods
from evomerge.report.methods import methods_page
from tests.methods.record import Measured, measure, recorded

DOCS = Path(__file__).parents[1] / "docs"
FLOOR = 1e-6  # errors below it are roundings that another processor may do otherwise


@pytest.fixture(scope="module")
def measured() -> dict[str, Measured]:
    return measure()


def test_the_page_of_methods_is_up_to_date() -> None:
    message = "stale: run `evomerge methods --markdown > docs/methods.md`"
    assert (DOCS / "methods.md").read_text("utf-8") == methods_page(), message


def test_the_page_of_golden_values_has_every_method() -> None:
    message = "stale: run `python -m tests.methods.record`"
    assert list(recorded()) == [m.name for m in all_methods()], message


def test_no_method_comes_less_near_than_the_page_says(measured: dict[str, Measured]) -> None:
    said = recorded()
    worse = {n: m.error for n, m in measured.items() if m.error > max(3 * said[n], FLOOR)}
    assert not worse, "run `python -m tests.methods.record`, or find what has become inexact"
