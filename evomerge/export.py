"""Recipe to checkpoint directory: streamed, verified against the scored digest, then published."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.checkpoints.companions import companion_files
from evomerge.checkpoints.digest import DTYPE_NAMES, combine, tensor_digest
from evomerge.checkpoints.open import open_checkpoint
from evomerge.checkpoints.write import TensorSpec, write_checkpoint
from evomerge.errors import IntegrityError
from evomerge.instantiate import Merge

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 5_000_000_000
Progress = Callable[[int, int], None]  # bytes of tensors written so far, and in all


def export(
    merge: Merge,
    out: Path,
    card: str,
    digest: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Writes the merged model as a Hugging Face directory and returns its digest.

    Tensors are streamed in the base's key space. The files are read back before they are published
    by one rename: until then ``out`` does not exist, whatever happens.

    Args:
        card: text of the model card (README.md).
        digest: of the weights that were scored; None for a merge that was never scored.

    Raises:
        OutputError: ``out`` exists and is not empty, or the disk is full.
        IntegrityError: the merged weights are not the scored ones, or not what was written.
    """
    base = merge.sources.base
    specs = [
        TensorSpec(name, DTYPE_NAMES[merge.dtype(name)], info.shape)
        for name, info in base.tensors.items()
    ]
    made: dict[str, str] = {}

    def produce(name: str) -> torch.Tensor:
        tensor = merge.tensor(name).cpu()
        made[name] = tensor_digest(tensor)
        return tensor

    def verify(staging: Path) -> None:
        check_digest(combine(made), digest, "the merged weights")
        written = open_checkpoint(staging)
        read = {name: tensor_digest(written.read(name)) for name in written.tensors}
        check_digest(combine(read), combine(made), "the weights read back from the disk")

    companions: dict[str, bytes | Path] = {
        **companion_files(base),
        "config.json": config_bytes(base.config, merge.recipe.dtype),
        "recipe.yaml": merge.recipe.to_yaml().encode(),
        "README.md": card.encode(),
    }
    write_checkpoint(out, specs, produce, companions, SHARD_BYTES, verify, progress)
    return combine(made)


def check_digest(found: str, expected: str | None, what: str) -> None:
    """IntegrityError unless the digests are equal (or nothing is expected)."""
    if expected is not None and found != expected:
        raise IntegrityError(
            f"{what} have digest {found}, expected {expected}; nothing was published: export on "
            f"the kind of machine and with the versions that scored it, from unchanged sources"
        )


def config_bytes(config: Mapping[str, object], dtype: str) -> bytes:
    """The base's config.json with the dtype of the merged model."""
    changed = {k: v for k, v in _with_dtype(config, dtype).items() if k != "_name_or_path"}
    return (json.dumps(changed, indent=2) + "\n").encode()


def _with_dtype(config: Mapping[str, object], dtype: str) -> dict[str, object]:
    """The config, and those of the towers inside it, with the dtype where they state one."""
    changed: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            changed[key] = _with_dtype(value, dtype)
        else:
            stated = dtype != "base" and key in ("dtype", "torch_dtype")
            changed[key] = dtype if stated else value
    return changed
