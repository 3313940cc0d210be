"""References to the zoo's checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.errors import ConfigError
from evomerge.zoo import paths


def test_a_known_reference_is_a_directory_of_the_package() -> None:
    assert paths.resolve("zoo:full/vqa") == Path(paths.__file__).parent / "weights" / "full" / "vqa"


@pytest.mark.parametrize("wrong", ["zoo:full/sums", "base", "zoo:", "zoo:../base", "zoo:full"])
def test_an_unknown_reference_names_the_known_ones(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"expected one of: zoo:base, .*zoo:lora/grounding"):
        paths.resolve(wrong)


def test_another_build_by_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.setenv("EVOMERGE_ZOO", str(tmp_path))
    assert paths.resolve("zoo:base") == tmp_path / "base"
    with pytest.raises(ConfigError, match="unset EVOMERGE_ZOO"):
        paths.resolve("zoo:mixture")


def test_no_heavy_imports() -> None:
    code = "import evomerge.zoo.paths, sys; print('torch' in sys.modules or 'numpy' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "False"
