"""Recipe and sources in, tensors out: the one code path of merges, candidates and exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from evomerge.checkpoints.catalog import fingerprint
from evomerge.checkpoints.digest import combine
from evomerge.checkpoints.layout import layout
from evomerge.checkpoints.sources import Expert, Sources, open_sources
from evomerge.errors import CandidateError, CheckpointError
from evomerge.methods import Context, get_method
from evomerge.recipe import Group, Recipe, group_values, select

if TYPE_CHECKING:
    import torch

FLOATING = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Merge:
    """A recipe bound to its opened sources: knows which tensors it moves, and makes them."""

    recipe: Recipe
    sources: Sources
    device: str = "cpu"

    @cached_property
    def experts(self) -> dict[str, Expert]:
        """The recipe's experts in the order in which the method gets them."""
        return {name: self.sources.experts[name] for name in self.recipe.order()}

    @cached_property
    def moved(self) -> dict[str, Group]:
        """The tensors this recipe may change: selected, floating, and changed by an expert.

        A tensor that equals the base in all of the recipe's experts stays at base untouched. A
        tensor that is tied to another one follows it.
        """
        tensors = self.sources.base.tensors
        changed = frozenset().union(*(e.changed for e in self.experts.values()))
        selected = select(self.recipe, layout(tensors))
        tied = self.sources.tied
        groups = {name: selected.get(tied.get(name, name)) for name in tensors}
        return {
            name: group
            for name, group in groups.items()
            if group is not None
            and tied.get(name, name) in changed
            and tensors[name].dtype in FLOATING
        }

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which a tensor of the base leaves this merge."""
        import torch

        stored = self.sources.base.tensors[name].dtype
        if stored not in FLOATING:
            return self.sources.base.read(name).dtype
        wanted = FLOATING[stored] if self.recipe.dtype == "base" else self.recipe.dtype
        dtype = getattr(torch, wanted)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor of the merged model in its output dtype, on the merge's device.

        Arithmetic is float32 with one rounding at the end.

        Raises:
            CandidateError: the result is not finite.
        """
        name = self.sources.tied.get(name, name)
        base = self.sources.base.read(name).to(self.device)
        if name not in self.moved:
            if not self._casts(name):
                return base
            merged = base
        else:
            method = get_method(self.recipe.method)
            experts = tuple(self.experts)
            merged = method.function(
                base.float(),
                [expert.read(name).to(self.device) for expert in self.experts.values()],
                Context(tensor=name, experts=experts, seed=self.recipe.seed),
                **group_values(method, self.moved[name], experts),
            )
        merged = merged.to(self.dtype(name))
        if not merged.isfinite().all():
            raise CandidateError(f"the merged {name} has a value that is not finite in its dtype")
        return merged

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor that is not as the base's files hold it, in their order.

        These are the moved ones, and with another output dtype than the base's all that it casts.
        """
        stored = self.sources.base.tensors
        for name in stored:
            if name in self.moved or self._casts(name):
                yield name, self.tensor(name)

    def _casts(self, name: str) -> bool:
        stored = self.sources.base.tensors[name].dtype
        return self.recipe.dtype != "base" and FLOATING.get(stored, self.recipe.dtype) != (
            self.recipe.dtype
        )


def model_digest(base: Mapping[str, str], made: Mapping[str, str]) -> str:
    """The digest of a whole merged model: of the tensors made, and of the base's for the rest.

    Both map tensor names to digests; ``base`` is the catalogue of the base checkpoint.
    """
    return combine({**base, **made})


def open_merge(recipe: Recipe, device: str = "cpu") -> Merge:
    """Opens the sources of a recipe and checks their content against the recipe's sha256.

    Raises:
        CheckpointError: a source is missing, damaged, incompatible, or not the one meant.
    """
    sources = open_sources(recipe.base.path, {n: s.path for n, s in recipe.experts.items()})
    check_fingerprints(recipe, sources)
    return Merge(recipe, sources, device)


def check_fingerprints(recipe: Recipe, sources: Sources) -> None:
    """CheckpointError if a source is not the one whose sha256 the recipe gives."""
    opened = {"base": sources.base, **{n: e.weights for n, e in sources.experts.items()}}
    wanted = {"base": recipe.base, **recipe.experts}
    for name, source in wanted.items():
        if source.sha256 is not None and (found := fingerprint(opened[name])) != source.sha256:
            raise CheckpointError(
                f"{source.path} ({name}) has content sha256 {found}, the recipe expects "
                f"{source.sha256}; use the original checkpoint or remove the sha256"
            )
