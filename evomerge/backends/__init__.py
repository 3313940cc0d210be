"""Where a candidate model runs; each backend loads its own library, and only when it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evomerge.backends.base import Backend
    from evomerge.checkpoints.sources import Sources
    from evomerge.config import BackendConfig


def make_backend(config: BackendConfig, sources: Sources) -> Backend:
    """The backend that an experiment declares, not opened yet."""
    if config.name == "fake":
        from evomerge.backends.fake import FakeBackend

        full = {name: e.path for name, e in sources.experts.items() if e.kind == "full"}
        return FakeBackend(sources.base.path, full)
    from evomerge.backends.transformers import TransformersBackend

    return TransformersBackend(
        sources.base.path,
        device=config.device,
        dtype=config.dtype,
        batch=config.batch,
        threads=config.threads,
    )


def merge_device(config: BackendConfig) -> str:
    """Where the tensors of a candidate are computed: where the model lives."""
    import torch

    if config.name == "fake":
        return "cpu"
    return config.device or ("cuda" if torch.cuda.is_available() else "cpu")
