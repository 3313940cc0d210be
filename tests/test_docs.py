"""Pages that are made from the code, and whether they still tell the truth."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.config import load_experiment
from evomerge.engine.study import search_settings
from evomerge.methods import all_methods
from evomerge.report.methods import methods_page
from evomerge.search import auto
from evomerge.search.algorithms import check_settings, find_algorithm
from evomerge.search.guided import USUAL
from tests.methods.record import Measured, measure, recorded
from tests.reference import PAGES

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


@pytest.mark.parametrize("page", PAGES)
def test_the_reference_is_up_to_date(page: str) -> None:
    assert (DOCS / page).read_text("utf-8") == PAGES[page](), "run `python -m tests.reference`"


def test_the_page_on_searching_is_valid(tmp_path: Path) -> None:
    """Its examples load, its options are those of the algorithm, its rules those of `auto`."""
    page = (DOCS / "searching.md").read_text("utf-8")
    shown: dict[str, Any] = {}
    for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        shown |= yaml.safe_load(block)
    assert shown.keys() == {"search", "experts", "directions"}
    rest = {
        "base": "org/base",
        "space": "layerwise-task-arithmetic",
        "objectives": ["zoo/vqa"],
        "optimise": {"maximise": ["zoo/vqa"]},
        "budget": {"candidates": 100},
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(rest | shown))
    experiment = load_experiment(tmp_path)

    settings, objectives = search_settings(experiment)
    _, options = check_settings(settings, objectives)
    guided = {name: option.default for name, option in find_algorithm("guided").options.items()}
    assert options == guided
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| ", page.split("## What an obj")[0], re.MULTILINE)
    usual = {name: f"{plain:g}, {sloped:g}" for name, (plain, sloped) in USUAL.items()}
    assert dict(rows) == {name: usual.get(name, "true") for name in guided}
    for limit in ("PROBED", "SHORT", "GP_GENES", "GP_CANDIDATES", "DENSE_GENES"):
        assert f" {getattr(auto, limit)} " in page, limit


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Broken links, missing pages and anchors that lead nowhere are errors."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    built = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True)

    assert built.returncode == 0, built.stderr
    home = (tmp_path / "site" / "index.html").read_text()
    assert not re.findall(r'(?:src|href)="https?://(?!github)[^"]+\.(?:js|css|woff2?)"', home)
