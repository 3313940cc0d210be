"""Where a candidate model runs; each backend loads its own library, and only when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from evomerge.errors import ConfigError
from evomerge.merged_adapter import why_never
from evomerge.scoring.measures import WeightStats

if TYPE_CHECKING:
    from evomerge.backends.base import AdapterBackend, Backend, Candidates
    from evomerge.backends.config import BackendConfig
    from evomerge.backends.vllm.backend import VllmBackend
    from evomerge.checkpoints.sources import Sources
    from evomerge.recipe import DType
    from evomerge.scoring.objectives import Objective


def slots(
    config: BackendConfig,
    method: str,
    dtype: DType,
    sources: Sources,
    objectives: Sequence[Objective],
) -> int | None:
    """How many candidates of a space a worker serves together, as LoRA adapters.

    None if it serves them one by one, each as weights in the place of the base's.

    Raises:
        ConfigError: the backend serves adapters only, and something here has none.
    """
    if config.name != "server" and (config.name != "vllm" or config.serve == "weights"):
        return None
    reason = why_never(method, dtype, sources) or _looks_at_weights(objectives)
    if reason is None:
        from evomerge.backends.vllm.adapters import why_not_served

        reason = why_not_served(sources)
    if reason is None:
        return config.population
    if config.name == "vllm" and config.serve == "auto":
        return None
    raise ConfigError(
        f"backend {config.name!r} is to serve candidates as LoRA adapters, but {reason}; use a "
        f"backend that takes weights, such as transformers"
    )


def _looks_at_weights(objectives: Sequence[Objective]) -> str | None:
    nothing = WeightStats(0, 0)
    found = [o.name for o in objectives if o.weigh(nothing) is not None]
    return f"objective {found[0]!r} looks at merged weights" if found else None


def make_backend(config: BackendConfig, sources: Sources) -> Backend | VllmBackend:
    """The backend that an experiment declares, not opened yet; candidates are weights in it."""
    if config.name == "fake":
        from evomerge.backends.fake import FakeBackend

        full = {name: e.path for name, e in sources.experts.items() if e.kind == "full"}
        return FakeBackend(sources.base.path, full)
    if config.name == "vllm":
        from evomerge.backends.vllm.backend import VllmBackend

        return VllmBackend(sources.base.path, config)
    if config.name == "server":
        raise ConfigError("backend 'server' takes no weights; use vllm or transformers")
    from evomerge.backends.transformers import TransformersBackend

    return TransformersBackend(
        sources.base.path,
        device=config.device,
        dtype=config.dtype,
        batch=config.batch,
        threads=config.threads,
    )


def candidates(
    backend: Backend | VllmBackend, config: BackendConfig, sources: Sources
) -> Candidates:
    """What puts candidates into an open backend's model."""
    if config.name == "vllm":
        return cast("VllmBackend", backend).candidates(sources)
    from evomerge.backends.instances import Instances
    from evomerge.bank.bank import Bank

    lora = config.lora if config.name == "transformers" else "weights"
    return Instances(Bank(sources, merge_device(config), lora), cast("Backend", backend))


def has_gradients(config: BackendConfig) -> bool:
    """Whether a worker can say how likelihoods change with merged weights; see `Differentiable`."""
    return config.name == "transformers"


def make_adapter_backend(config: BackendConfig, sources: Sources) -> AdapterBackend:
    """The backend that an experiment declares, not opened yet; candidates are adapters in it."""
    if config.name == "vllm":
        from evomerge.backends.vllm.adapters import VllmAdapterBackend

        return VllmAdapterBackend(sources, config)
    if config.name == "server":
        from evomerge.backends.server.backend import ServerBackend

        return ServerBackend(config, sources)
    raise ConfigError(f"backend {config.name!r} takes no adapters; use vllm or server")


def merge_device(config: BackendConfig) -> str:
    """Where the tensors of a candidate are computed: where the model lives."""
    import torch

    if config.name == "fake":
        return "cpu"
    device = config.device if config.name == "transformers" else None
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
