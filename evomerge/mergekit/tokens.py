"""Whether a configuration's vocabulary is the base's, the only one that a merge here can have."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from evomerge.checkpoints.open import resolve
from evomerge.errors import ConfigError
from evomerge.mergekit.form import Configuration, Reference

_REMEDY = "a merge here has the base's vocabulary: bring the models to one vocabulary first"


def tokenizer_notes(
    config: Configuration, base: str, models: Sequence[str], local: Callable[[str], str]
) -> list[str]:
    """Notes on ``tokenizer_source`` or ``tokenizer``; ``models`` are the paths of full models.

    Raises:
        ConfigError: the configuration asks for another vocabulary than the base's.
    """
    source = config.tokenizer_source
    if config.tokenizer is not None:
        if config.tokenizer.tokens or config.tokenizer.pad_to_multiple_of:
            raise ConfigError(f"tokenizer.tokens and pad_to_multiple_of: {_REMEDY}")
        source = config.tokenizer.source
    if source in (None, "base"):
        return []
    others = models if source == "union" else [local(_path(source))]
    known = _vocabulary(base)
    notes = []
    for path in others:
        if path == base:
            continue
        found = _vocabulary(path)
        if known is None or found is None:
            notes.append(
                f"the base's tokenizer is kept: whether that of {path} has the same vocabulary "
                f"cannot be told without a tokenizer.json of both"
            )
        elif found != known:
            raise ConfigError(f"tokenizer of {path} differs from that of the base; {_REMEDY}")
    return notes


def _path(source: Any) -> str:
    return source.model if isinstance(source, Reference) else str(source)


def _vocabulary(path: str) -> Any:
    """Tokens and their numbers, or None if the model has no tokenizer.json that says so."""
    file = resolve(path) / "tokenizer.json"
    try:
        data = json.loads(file.read_bytes())
        added = {each["content"]: each["id"] for each in data.get("added_tokens") or []}
        return data["model"]["vocab"], added
    except (OSError, ValueError, KeyError, TypeError):
        return None
