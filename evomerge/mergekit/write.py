"""A recipe as a mergekit configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from evomerge.checkpoints.layout import Place, layout
from evomerge.checkpoints.open import Checkpoint, is_adapter, open_checkpoint, resolve
from evomerge.errors import ConfigError
from evomerge.mergekit.form import Number, evaluate
from evomerge.mergekit.shared import SHARED, SIGNS, WRITTEN_AS, Point
from evomerge.methods import get_method
from evomerge.recipe import Merged, Recipe, Source, group_values, select

_STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FIRST_BASE = ("slerp", "nearswap", "arcee_fusion")  # with two experts the first is the base_model


class _Dumper(yaml.SafeDumper):
    """Writes equal lists out in full, for people to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_mergekit(recipe: Recipe) -> tuple[str, list[str]]:
    """The YAML text of the same merge for mergekit, and notes on where it differs.

    Parameters that differ between groups become filters and gradients of one entry a block.

    Raises:
        ConfigError: names what mergekit cannot express.
    """
    return _Writing(recipe).text()


@dataclass(frozen=True)
class _Writing:
    recipe: Recipe

    @cached_property
    def name(self) -> str:
        """mergekit's name of the method."""
        if self.recipe.method not in WRITTEN_AS:
            raise ConfigError(
                f"method {self.recipe.method!r} does not exist in mergekit; methods that do: "
                f"{', '.join(sorted(WRITTEN_AS))}"
            )
        return WRITTEN_AS[self.recipe.method]

    @cached_property
    def base(self) -> Checkpoint:
        return open_checkpoint(self.recipe.base.path)

    @cached_property
    def places(self) -> dict[str, Place]:
        return layout(self.base.tensors)

    @cached_property
    def paths(self) -> dict[str, str]:
        """The experts as mergekit names models, in the order in which the method gets them."""
        found = {}
        for name in self.recipe.order():
            source = self.recipe.experts[name]
            if isinstance(source, Merged):
                raise ConfigError(
                    f"expert {name!r} is a merge itself, which one configuration cannot hold; "
                    f"export it and name its directory"
                )
            found[name] = self._model(source.path)
        twice = [name for name, path in found.items() if list(found.values()).count(path) > 1]
        if twice:
            raise ConfigError(f"{', '.join(twice)} are one model, which mergekit would use once")
        return found

    def _model(self, path: str) -> str:
        directory = resolve(path) if path.startswith("zoo:") else Path(path).expanduser()
        if not directory.is_dir():
            return path  # on the hub; an adapter there cannot be told without downloading it
        if is_adapter(directory):
            return f"{self._model(self.recipe.base.path)}+{directory}"
        return str(directory)

    @cached_property
    def points(self) -> dict[str, Point | None]:
        """mergekit's parameters of every tensor of the base; None where it stays at base."""
        method = get_method(self.recipe.method)
        shared = SHARED[self.name]
        made = {
            group.tensors: shared.write(group_values(method, group, self.recipe.order()))
            for group in self.recipe.parameters
        }
        chosen = select(self.recipe, self.places)
        return {n: made[chosen[n].tensors] if n in chosen else None for n in self.places}

    @cached_property
    def sample(self) -> Point:
        """Any of the points: all have the same parameters."""
        found = next((p for p in self.points.values() if p is not None), None)
        if found is None:
            raise ConfigError("the recipe merges nothing")
        if len({p.based for p in self.points.values() if p is not None}) > 1:
            raise ConfigError("task_vectors differs between groups; mergekit has one base_model")
        return found

    def text(self) -> tuple[str, list[str]]:
        data = {"merge_method": self.name, **self._models(), **self._dtypes()}
        notes = [SHARED[self.name].differs] if SHARED[self.name].differs else []
        if any(w < 0 for p in self.points.values() if p for w in p.each.get("weight", ())):
            notes.append(SIGNS)
        if any(s.sha256 for s in self._sources()):
            notes.append("mergekit checks no content: the sha256 of the sources are left out")
        if not all(Path(s.path).expanduser().is_dir() for s in self._sources()):
            notes.append("what is not a directory here is taken for a full model, not an adapter")
        text = yaml.dump(
            data,
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=None,
            width=100,
        )
        return text, notes

    def _sources(self) -> list[Source]:
        experts = self.recipe.experts.values()
        return [self.recipe.base, *(e for e in experts if isinstance(e, Source))]

    def _models(self) -> dict[str, Any]:
        """The keys base_model, models and parameters."""
        self._refuse_rest()
        base = self._model(self.recipe.base.path)
        paths = list(self.paths.values())
        weights = {name: self._each(name) for name in self.sample.each}
        overall = {name: self._overall(name) for name in self.sample.overall}
        entries = [
            {"model": path, "parameters": {name: w[i] for name, w in weights.items()}}
            for i, path in enumerate(paths)
        ]
        if self.name == "linear":
            if base not in paths:
                own = {n: 0.0 if p else 1.0 for n, p in self.points.items()}
                setting = self._setting("weight", own)
                entries.insert(0, {"model": base, "parameters": {"weight": setting}})
        elif self.name in _FIRST_BASE and len(paths) == 2:
            base = paths[0]
        entries = [e if e["parameters"] else {"model": e["model"]} for e in entries]
        found: dict[str, Any] = {}
        if self.sample.based or self.name == "linear":
            found["base_model"] = base
        return {**found, "models": entries} | ({"parameters": overall} if overall else {})

    def _refuse_rest(self) -> None:
        """ConfigError where tensors stay at base and mergekit has no way to say so."""
        named = [k for k in ("anchor", "statistics") if getattr(self.recipe, k) is not None]
        if named:
            raise ConfigError(f"{named[0]} of a recipe has no counterpart in mergekit")
        rest = next((n for n, p in self.points.items() if p is None), None)
        pair = self.name in _FIRST_BASE and len(self.paths) == 2
        if rest is None or self.name == "linear" or (SHARED[self.name].still and not pair):
            return
        raise ConfigError(
            f"{rest} and others stay at base, which {self.name!r} in mergekit cannot do; let the "
            f"recipe's entries cover every tensor ('*/*/*')"
        )

    def _each(self, name: str) -> list[Any]:
        """The settings of a parameter that every model has its own of, in the experts' order."""
        found = []
        base = self._model(self.recipe.base.path)
        for i, path in enumerate(self.paths.values()):
            still = 0.0 if name in SHARED[self.name].still else None
            if self.name == "linear":  # the base's own weight is then the only one
                still = 1.0 if path == base else 0.0
            wanted = {n: p.each[name][i] if p else still for n, p in self.points.items()}
            found.append(self._setting(name, wanted))
        return found

    def _overall(self, name: str) -> Any:
        still = 0.0 if name in SHARED[self.name].still else None
        return self._setting(
            name, {n: p.overall[name] if p else still for n, p in self.points.items()}
        )

    def _dtypes(self) -> dict[str, str]:
        """float32 arithmetic, and the output dtype where one can be named."""
        dtype: str | None = self.recipe.dtype
        if dtype == "base":
            stored = {info.dtype for info in self.base.tensors.values()} & set(_STORED)
            if len(stored) > 1:
                return {}  # as stored, tensor by tensor; so is then the arithmetic
            dtype = next((_STORED[s] for s in stored), None)
        return {"dtype": "float32", "out_dtype": dtype} if dtype else {}

    def _setting(self, name: str, wanted: Mapping[str, Number | None]) -> Any:
        """A number, gradient or list of filters that gives every tensor what is wanted.

        None stands for any value.
        """
        values = {v for v in wanted.values() if v is not None}
        if len(values) == 1:
            return next(iter(values))
        if any(isinstance(v, bool) for v in values):
            raise ConfigError(f"{name} is true for some tensors and false for others; make it one")
        profiles = self._profiles(wanted)
        rest = {n for n, v in wanted.items() if v is not None}
        found: list[dict[str, Any]] = []
        while rest:
            fallback = next((p for p in profiles if rest <= self._agreeing(p, wanted, rest)), None)
            if fallback is not None:
                if not found and isinstance(fallback, list):
                    return fallback
                return [*found, {"value": fallback}]
            text, profile = self._filter(name, profiles, wanted, rest)
            found.append({"filter": text, "value": profile})
            rest = {n for n in rest if text not in n}
        return found

    def _profiles(self, wanted: Mapping[str, Number | None]) -> list[float | list[float]]:
        """Candidates for a filter's value: what some kind of tensors has along its tower."""
        kinds: dict[tuple[str, str, bool], dict[int, float]] = {}
        for name, value in wanted.items():
            place = self.places[name]
            if value is not None:
                kind = kinds.setdefault((place.tower, place.module, place.block is None), {})
                kind[place.block or 0] = float(value)
        found: list[float | list[float]] = []
        for (tower, _, outside), along in kinds.items():
            constant = len(set(along.values())) == 1
            if constant or outside:
                profile: float | list[float] = next(iter(along.values()))
            else:
                blocks = range(self._counts[tower])
                profile = [along[min(along, key=partial(_distance, i))] for i in blocks]
            if profile not in found:
                found.append(profile)
        return found

    @cached_property
    def _counts(self) -> dict[str, int]:
        """Number of blocks of each tower."""
        counts: dict[str, int] = {}
        for place in self.places.values():
            if place.block is not None:
                counts[place.tower] = max(counts.get(place.tower, 0), place.block + 1)
        return counts

    def _agreeing(
        self,
        profile: float | list[float],
        wanted: Mapping[str, Number | None],
        among: set[str],
    ) -> set[str]:
        """The tensors to which a profile gives what they want."""

        def depth(place: Place) -> float:
            if place.block is None:
                return 0.0
            count = self._counts[place.tower]
            return place.block / (count - 1) if count > 1 else 1.0

        return {
            n
            for n in among
            if wanted[n] is None or evaluate(profile, n, depth(self.places[n])) == wanted[n]
        }

    def _filter(
        self,
        name: str,
        profiles: Sequence[float | list[float]],
        wanted: Mapping[str, Number | None],
        rest: set[str],
    ) -> tuple[str, float | list[float]]:
        """The substring and profile that are right for the most tensors, and wrong for none."""
        best: tuple[int, int, str, float | list[float]] | None = None
        held = {text: {n for n in rest if text in n} for text in _substrings(rest)}
        for profile in profiles:
            right = self._agreeing(profile, wanted, rest)
            for text, covered in held.items():
                rank = (len(covered), -len(text), text, profile)
                if covered <= right and (best is None or rank[:3] > best[:3]):
                    best = rank
        if best is None:
            raise ConfigError(
                f"{name}: no filter by a part of the name tells {min(rest)} from the tensors with "
                f"other values"
            )
        return best[2], best[3]


def _distance(one: int, other: int) -> int:
    return abs(one - other)


def _substrings(names: set[str]) -> set[str]:
    """Runs of the dotted parts of names that hold no number, as candidates for filters."""
    found: set[str] = set()
    for name in names:
        run: list[str] = []
        for part in [*name.split("."), "0"]:
            if part.isdigit():
                ends = combinations(range(len(run) + 1), 2)
                found |= {".".join(run[start:end]) for start, end in ends}
                run = []
            else:
                run.append(part)
    return found
