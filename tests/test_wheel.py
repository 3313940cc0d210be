"""The built wheel works away from the repository: it carries the zoo, spaces, data, experiments."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(out.glob("evomerge-*.whl"))


def test_the_quickstart_is_valid_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = (
        "import evomerge; from evomerge.cli.main import app; print(evomerge.__file__, flush=True);"
        "app(['validate', 'quickstart'])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert "quickstart is valid" in done.stdout
    assert "1000 to search, 2000 held out" in done.stdout


def test_its_size_stays_below_what_the_zoo_may_take(wheel: Path) -> None:
    assert wheel.stat().st_size < 20_000_000
