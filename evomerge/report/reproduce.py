"""How to make a study again: its experiment as a file, from what the ledger holds of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from evomerge.report.view import View


def experiment_yaml(view: View) -> str:
    """An experiment file that runs the same study: same sources, space, data, search and seed."""
    written: dict[str, Any] = dict(view.study["experiment"])
    written["objectives"] = [_objective(entry) for entry in written["objectives"]]
    under_way = sum(not c.is_reference for c in view.state.pending())
    written["budget"] = {"candidates": max(1, int(view.state.evaluations) + under_way)}
    return yaml.safe_dump(_without_none(written), sort_keys=False, allow_unicode=True, width=100)


def _objective(entry: dict[str, Any]) -> Any:
    """As an experiment names it; files of an inline one by their absolute paths."""
    if "source" in entry:
        return entry["source"]
    inline, folder = dict(entry["inline"]), Path(entry["folder"])
    if "data" in inline:
        inline["data"] = {split: _file(given, folder) for split, given in inline["data"].items()}
    return inline


def _file(given: Any, folder: Path) -> Any:
    if isinstance(given, str):
        return str(folder / given)
    return {**given, "file": str(folder / given["file"])}


def _without_none(value: Any) -> Any:
    """Keys that say nothing are left out."""
    if isinstance(value, dict):
        return {key: _without_none(v) for key, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list | tuple) else value
