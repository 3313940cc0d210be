"""LoRA adapters in the directory format of PEFT: adapter_config.json and adapter_model.safetensors.

The weight that an adapter gives is W + s * B @ A with s = alpha / r (Hu et al. 2021,
arXiv:2106.09685) or alpha / sqrt(r) (rank-stabilised: Kalajdzievski 2023, arXiv:2312.03732).
Tensors that PEFT stores whole (modules_to_save, trained biases, embeddings beside their factors)
replace those of the base. Variants that are more than that sum are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evomerge.checkpoints.headers import FLOATING, TensorInfo, read_header
from evomerge.checkpoints.layout import canonical
from evomerge.checkpoints.open import Buffered, Reader, no_safetensors, read_json, resolve
from evomerge.errors import CheckpointError
from evomerge.methods.numerics import one_thread

if TYPE_CHECKING:
    import torch

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"

_FACTOR: Final = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])"
    r"(?:\.(?!bias$)\w+)?(?:\.weight)?"  # the adapter's name, if it was saved without PEFT
)
_WRAPPER: Final = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)\.")
_MERGE_FIRST: Final = "merge it into its base with PEFT's merge_and_unload and give the result"
# settings under which the weight is more than W + s * B @ A
_REFUSED: Final = (
    "use_dora", "use_qalora", "lora_bias", "layer_replication", "target_parameters",
    "trainable_token_indices", "alora_invocation_tokens", "megatron_config", "use_bdlora",
    "kasa_config", "arrow_config", "monteclora_config",
)  # fmt: skip
# starts that leave the base's weights alone; PiSSA, OLoRA, CorDA and LoftQ change them
_STARTS: Final = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Module:
    """One adapted weight: the stored factors' names, the scaling, and whether it is transposed."""

    a: str
    b: str
    scaling: float
    transposed: bool


@dataclass(frozen=True)
class Adapter:
    """An opened LoRA adapter.

    tensors: every stored tensor by its name on disk; modules: the adapted weights, and
    replaced: names on disk of the tensors stored whole, both by the canonical name of the weight.
    """

    reference: str
    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    modules: Mapping[str, Module]
    replaced: Mapping[str, str]
    _reader: Reader = field(default_factory=Reader, repr=False, compare=False)

    def read(self, name: str) -> torch.Tensor:
        """A stored tensor by its name on disk, memory-mapped: do not write into it."""
        return self._reader.read(self.tensors[name])

    def expect(self, name: str) -> None:
        """Tells the system that this tensor will be read soon."""
        self._reader.expect(self.tensors[name])

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        """The shapes that the stored tensors imply for a weight, by its canonical name."""
        found = []
        if name in self.replaced:
            found.append(self.tensors[self.replaced[name]].shape)
        if name in self.modules:
            module = self.modules[name]
            shape = (self.tensors[module.b].shape[0], self.tensors[module.a].shape[1])
            found.append(shape[::-1] if module.transposed else shape)
        return found

    def is_idle(self, name: str) -> bool:
        """Whether the factors of a canonical name add nothing: one is all zero, as at the start."""
        module = self.modules[name]
        return not (module.scaling and self.read(module.a).any() and self.read(module.b).any())

    def factors(self, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """(A, B, scaling) of a canonical name: float32 of shapes (r, in) and (out, r).

        The weight's delta is scaling * B @ A, of the weight's own shape (out, in): the factors of
        a weight that is stored transposed (embeddings, fan_in_fan_out) are swapped accordingly.
        """
        module = self.modules[name]
        a, b = self.read(module.a).float(), self.read(module.b).float()
        if module.transposed:
            a, b = b.T, a.T
        return a, b, module.scaling

    def delta(self, name: str) -> torch.Tensor:
        """What the adapter adds to the weight of this canonical name, in float32."""
        a, b, scaling = self.factors(name)
        with one_thread():  # a matrix product's last bits may depend on how it is split
            product: torch.Tensor = (b @ a).mul_(scaling)
        return product

    def facts(self) -> dict[str, str]:
        """What beside the stored tensors determines the weights: scaling and orientation."""
        return {
            name: f"{module.scaling!r}{' transposed' if module.transposed else ''}"
            for name, module in self.modules.items()
        }


def open_adapter(reference: str | Path, streaming: bool = False) -> Adapter:
    """Open a LoRA adapter; CheckpointError if it is damaged or of a kind that cannot be merged.

    With streaming, tensors are read into memory of their own instead of being mapped.
    """
    path = resolve(reference)
    config = read_json(path / CONFIG)
    _refuse_variants(path, config)
    if not (path / WEIGHTS).exists():
        raise no_safetensors(path, WEIGHTS)
    tensors = read_header(path / WEIGHTS)
    factors, replaced = _sort(path, tensors)
    modules = {
        canonical(f"{name}.weight"): _module(path, config, name, sides, tensors)
        for name, sides in factors.items()
    }
    if len(modules) != len(factors):
        raise CheckpointError(
            f"{path / WEIGHTS} adapts one weight under two names, expected one: save it again"
        )
    reader = Buffered() if streaming else Reader()
    return Adapter(str(reference), path, config, tensors, modules, replaced, reader)


def _refuse_variants(path: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{path / CONFIG} has peft_type {kind!r}, expected 'LORA': {_MERGE_FIRST}"
        )
    for setting in _REFUSED:
        if config.get(setting):
            raise CheckpointError(
                f"{path / CONFIG} has {setting} {str(config[setting])[:80]!r}, expected plain "
                f"LoRA: {_MERGE_FIRST}"
            )
    start = config.get("init_lora_weights")
    if start not in _STARTS:
        raise CheckpointError(
            f"{path / CONFIG} has init_lora_weights {start!r}, which changes the base's weights, "
            "expected true: save it with path_initial_model_for_weight_conversion, which converts "
            "it to plain LoRA"
        )


def _sort(
    path: Path, tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Module name -> {"A" or "B" or "embedding": name on disk}; canonical -> name stored whole."""
    factors: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for name, info in tensors.items():
        if info.dtype not in FLOATING:
            raise CheckpointError(
                f"{path / WEIGHTS}: tensor {name!r} has dtype {info.dtype}, expected one of "
                f"{', '.join(sorted(FLOATING))}: save the adapter unquantised"
            )
        plain = re.sub(r"^(?:base_model\.model\.)+", "", name)
        if found := _FACTOR.fullmatch(plain):
            sides = factors.setdefault(found["module"], {})
            kind = found["side"] + ("e" if found["embedding"] else "")
            if kind in sides:
                raise CheckpointError(
                    f"{path / WEIGHTS} has two adapters for {found['module']!r} "
                    f"({sides[kind]!r} and {name!r}), expected one: save one adapter a directory"
                )
            sides[kind] = name
        elif "lora_" in plain:
            raise CheckpointError(
                f"{path / WEIGHTS}: tensor {name!r} is no plain LoRA factor, expected names ending "
                f"in lora_A.weight and lora_B.weight: {_MERGE_FIRST}"
            )
        else:
            replaced[canonical(_WRAPPER.sub(".", plain))] = name
    return factors, replaced


def _module(
    path: Path,
    config: Mapping[str, Any],
    name: str,
    sides: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
) -> Module:
    embedding = "Ae" in sides or "Be" in sides
    expected = {"Ae", "Be"} if embedding else {"A", "B"}
    if set(sides) != expected:
        raise CheckpointError(
            f"{path / WEIGHTS} has only {sorted(sides.values())} for {name!r}, expected lora_A and "
            "lora_B: download it again"
        )
    a, b = (tensors[sides[side]] for side in sorted(expected))
    rank = _setting(path, config, "rank_pattern", "r", name)
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise CheckpointError(
            f"{path / WEIGHTS}: the factors of {name!r} have shapes {list(a.shape)} and "
            f"{list(b.shape)}, expected matrices (linear and embedding layers): {_MERGE_FIRST}"
        )
    if not a.shape[0] == b.shape[1] == rank:
        raise CheckpointError(
            f"{path / WEIGHTS}: the factors of {name!r} have shapes {list(a.shape)} and "
            f"{list(b.shape)}, expected [r, in] and [out, r] with r = {rank:g} of {CONFIG}: "
            "take both files from the same place"
        )
    alpha = _setting(path, config, "alpha_pattern", "lora_alpha", name)
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Module(a.name, b.name, scaling, embedding or bool(config.get("fan_in_fan_out")))


def _setting(path: Path, config: Mapping[str, Any], patterns: str, key: str, name: str) -> float:
    """A number of the config for one module; a pattern matches the end of its name, as in PEFT."""
    value: Any = config.get(key)
    try:
        for pattern, special in (config.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", name):
                value = special
                break
    except (re.error, AttributeError) as error:
        raise CheckpointError(
            f"{path / CONFIG} has a {patterns} that cannot be used ({error}), expected regular "
            "expressions and numbers: mend it"
        ) from error
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (key == "r" and value <= 0):
        raise CheckpointError(
            f"{path / CONFIG} has {key} {value!r} for {name!r}, expected a number"
            f"{' above 0' if key == 'r' else ''}: mend it or download it again"
        )
    return float(value)
