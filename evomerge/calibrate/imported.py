"""Second moments that a trainer's Adam kept, from a safetensors file instead of a pickle.

The tensors are named as the parameters, optionally with `.exp_avg_sq` behind and a trainer's
wrappers before (`module.`, `_orig_mod.`); states of other names are not read. They are stored as
they are: Adam's bias correction at the end of a training is one factor for all, and near 1.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from evomerge.calibrate.store import Draft
from evomerge.checkpoints.headers import FLOATING, TensorInfo, read_header
from evomerge.checkpoints.layout import canonical
from evomerge.checkpoints.open import Reader
from evomerge.checkpoints.sources import Sources
from evomerge.errors import CheckpointError

_WRAPPERS: Final = re.compile(r"^(?:(?:module|_orig_mod|_fsdp_wrapped_module)\.)+")
_OTHERS: Final = re.compile(r"\.(?:exp_avg|step|max_exp_avg_sq|momentum_buffer|master_param)$")
_PICKLED: Final = (b"PK", b"\x80")
_CONVERT: Final = (
    "where you trust it, convert it in Python: "
    "`import torch, safetensors.torch`; "
    '`states = torch.load("optimizer.pt", weights_only=True)["state"]`; '
    "`safetensors.torch.save_file({names[i]: s['exp_avg_sq'].contiguous() for i, s in "
    'states.items()}, "optimizer.safetensors")`, with names the model\'s parameter names in the '
    "order in which the optimiser got them"
)


def read_states(path: Path) -> dict[str, TensorInfo]:
    """The second moments of a file by the canonical names of their parameters.

    Raises:
        CheckpointError: it is pickled, damaged, or holds states of LoRA factors.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(2)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if start in _PICKLED or start[:1] == _PICKLED[1]:
        raise CheckpointError(
            f"{path} is pickled, which can run code when it is read, expected a safetensors file: "
            f"{_CONVERT}"
        )
    states: dict[str, TensorInfo] = {}
    for name, info in read_header(path).items():
        if _OTHERS.search(name):
            continue
        if ".lora_" in name:
            raise CheckpointError(
                f"{path}: {name!r} is the state of a LoRA factor, expected those of whole weights: "
                "collect second_moment with --collect instead"
            )
        states[canonical(_WRAPPERS.sub("", name).removesuffix(".exp_avg_sq"))] = info
    return states


def file_sha256(path: Path) -> str:
    """Of the file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def import_states(
    path: Path, sources: Sources, names: Sequence[str], draft: Draft
) -> Mapping[str, str]:
    """Stores the second moments of these tensors of the base; returns what was stored.

    Raises:
        CheckpointError: none of them is in the file, or one has another shape or cannot be the mean
            of squares.
    """
    states = read_states(path)
    reader = Reader()
    written = {}
    for name in names:
        info = states.get(canonical(name))
        if info is None:
            continue
        wanted = sources.base.tensors[name].shape
        if info.shape != wanted or info.dtype not in FLOATING:
            raise CheckpointError(
                f"{path}: {info.name!r} is {info.dtype} of shape {list(info.shape)}, expected "
                f"floating point of shape {list(wanted)}: take the states of this very model"
            )
        tensor = reader.read(info).float()
        if not bool(tensor.isfinite().all()) or bool((tensor < 0).any()):
            raise CheckpointError(
                f"{path}: {info.name!r} has values that are negative or not finite, expected means "
                "of squares (exp_avg_sq): check what the file holds"
            )
        written[name] = draft.store.write(tensor)
    if not written:
        raise CheckpointError(
            f"{path} holds no state of a tensor that the experts change, expected names such as "
            f"{names[0]!r}; found {', '.join([i.name for i in states.values()][:3]) or 'none'}"
        )
    draft.record(written)
    return written
