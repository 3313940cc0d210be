"""The files beside the weights that make a checkpoint usable: config, tokenizer, processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from evomerge.checkpoints.open import Checkpoint

# Python files are left out on purpose: a merged model must not carry code to run
_PATTERNS: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "*token*.json",
    "*processor*_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
    "vocab*",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "tekken.json",
)
_REFUSED: Final = (".py", ".pyc", ".bin", ".pt", ".pth", ".pkl", ".safetensors")


def companion_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """Config, tokenizer, processor and chat templates, by name relative to the checkpoint.

    Code is never among them, so a checkpoint with `auto_map` in its config loses its custom
    classes: see `needs_code`.
    """
    found = {
        file.relative_to(checkpoint.path).as_posix(): file
        for pattern in _PATTERNS
        for file in checkpoint.path.glob(pattern)
        if file.is_file() and file.suffix not in _REFUSED
    }
    return dict(sorted(found.items()))


def needs_code(checkpoint: Checkpoint) -> bool:
    """Whether the config names classes of its own (`auto_map`), whose code is not copied."""
    return bool(checkpoint.config.get("auto_map"))
