from __future__ import annotations

import pytest

from evomerge import content
from evomerge.errors import ConfigError


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """An installed package that carries content, and a working directory with some of its own."""
    package, here = tmp_path / "package", tmp_path / "here"
    files = [
        package / "content/objectives/zoo/vqa/objective.yaml",
        package / "content/objectives/zoo/chart/objective.yaml",
        package / "content/search_spaces/layerwise-ties.yaml",
        package / "content/experiments/quickstart/experiment.yaml",
        here / "objectives/zoo/vqa/objective.yaml",
        here / "objectives/objective.yaml",
        here / "search_spaces/nested/mine.yaml",
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.setattr(content, "_PACKAGE", package)
    monkeypatch.chdir(here)
    return package, here


def test_the_working_directory_hides_what_is_shipped(roots):
    package, here = roots
    assert content.find("objectives", "zoo/vqa") == here / "objectives/zoo/vqa/objective.yaml"
    shipped = package / "content/objectives/zoo/chart/objective.yaml"
    assert content.find("objectives", "zoo/chart") == shipped


def test_names_of_every_kind(roots):
    assert list(content.known("objectives")) == ["zoo/chart", "zoo/vqa"]
    assert list(content.known("search_spaces")) == ["layerwise-ties", "nested/mine"]
    assert list(content.known("experiments")) == ["quickstart"]


def test_an_unknown_name_lists_the_known_ones_nearest_first(roots):
    with pytest.raises(ConfigError, match="'zoo/vga'; known, nearest first: zoo/vqa, zoo/chart"):
        content.find("objectives", "zoo/vga")
    with pytest.raises(ConfigError, match=r"nothing is called '\.\./objectives'"):
        content.find("objectives", "../objectives")


def test_a_source_checkout_finds_the_folders_beside_the_package(roots, tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    file = checkout / "objectives" / "sum" / "objective.yaml"
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setattr(content, "_PACKAGE", checkout / "evomerge")
    assert "sum" not in content.known("objectives")  # site-packages is no checkout
    (checkout / "pyproject.toml").touch()
    assert content.find("objectives", "sum") == file
