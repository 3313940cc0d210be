"""Finds the content that carries names: objectives, search spaces and experiments.

A name is looked up in the folder of its kind in the working directory, then in the content that
comes with evomerge: inside the installed package, or beside it in a source checkout.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

from evomerge.errors import ConfigError

Kind = Literal["objectives", "search_spaces", "experiments"]

_PACKAGE = Path(__file__).parent
_MAIN_FILE = {"objectives": "objective.yaml", "experiments": "experiment.yaml"}


def known(kind: Kind) -> dict[str, Path]:
    """YAML file of every name of a kind; the working directory's hide the shipped ones."""
    names: dict[str, Path] = {}
    for root in (_shipped(kind), Path.cwd() / kind):
        names.update(_names(root, kind))
    return dict(sorted(names.items()))


def find(kind: Kind, name: str) -> Path:
    """YAML file of a name.

    Raises:
        ConfigError: there is no such name; the message lists the known ones, nearest first.
    """
    names = known(kind)
    if name in names:
        return names[name]
    nearest = sorted(names, key=lambda n: -difflib.SequenceMatcher(None, n, name).ratio())
    raise ConfigError(
        f"{kind}: nothing is called {name!r}; known, nearest first: {', '.join(nearest) or 'none'};"
        " or give the path of a YAML file"
    )


def _shipped(kind: Kind) -> Path:
    packaged = _PACKAGE / "content" / kind
    in_checkout = (_PACKAGE.parent / "pyproject.toml").is_file() and not packaged.is_dir()
    return _PACKAGE.parent / kind if in_checkout else packaged


def _names(root: Path, kind: Kind) -> dict[str, Path]:
    main = _MAIN_FILE.get(kind)
    if main is None:
        return {p.relative_to(root).with_suffix("").as_posix(): p for p in root.rglob("*.yaml")}
    return {p.parent.relative_to(root).as_posix(): p for p in root.rglob(main) if p.parent != root}
