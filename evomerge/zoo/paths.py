"""Where the zoo's checkpoints lie on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from evomerge.errors import ConfigError

PREFIX: Final = "zoo:"
TASKS: Final = ("vqa", "geometry", "chart", "ocr", "grounding")
NAMES: Final = (
    "base",
    "mixture",
    *(f"full/{task}" for task in TASKS),
    *(f"lora/{task}" for task in TASKS),
)
TEXT_TASKS: Final = ("reverse", "sort", "shift", "add", "unique")
TEXT_NAMES: Final = ("text/base", *(f"text/{task}" for task in TEXT_TASKS))


def root() -> Path:
    """The directory with the checkpoints: the package's own, or another build that EVOMERGE_ZOO
    names.
    """
    chosen = os.environ.get("EVOMERGE_ZOO")
    return Path(chosen) if chosen else Path(__file__).parent / "weights"


def is_reference(reference: str) -> bool:
    """Whether the string is meant for the zoo ("zoo:...")."""
    return reference.startswith(PREFIX)


def resolve(reference: str) -> Path:
    """The directory of a checkpoint such as "zoo:base", "zoo:lora/ocr" or "zoo:text/sort".

    Raises ConfigError for a name that the zoo has not, or one whose files are missing.
    """
    name = reference.removeprefix(PREFIX)
    if not is_reference(reference) or name not in NAMES + TEXT_NAMES:
        known = ", ".join(PREFIX + each for each in NAMES + TEXT_NAMES)
        raise ConfigError(f"unknown zoo reference {reference!r}, expected one of: {known}")
    path = root() / name
    if not path.is_dir():
        raise ConfigError(
            f"{reference!r} is not at {path}: unset EVOMERGE_ZOO, or build the zoo there with"
            " `evomerge zoo build`"
        )
    return path
