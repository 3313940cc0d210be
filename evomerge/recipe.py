"""Recipe: the complete, serialisable definition of a merged model.

A static merge, a candidate of a search and an exported checkpoint are all a Recipe that
``evomerge.instantiate`` turns into tensors. A recipe file looks like this::

    base: {path: org/base-model, sha256: 5d1f...}   # sha256 is optional, and checked when given
    experts:
      math: {path: org/math-model}
      code: {path: ./my-code-lora}
    method: ties
    parameters:
      - tensors: language/0-15/attention,mlp        # tower/blocks/modules, * for any
        weight: {math: 0.8, code: 0.5}
        density: 0.4                                # one value serves every expert
    seed: 0
    dtype: bfloat16                                 # or base: every tensor keeps the base's dtype

Tensors that no entry selects stay at base. A tensor that two entries select is an error.

An expert may itself be a merge of the same base, written inline or as the name of a recipe file,
so that a method can work on what another one made (LiNeS scales any merge by depth, and task
arithmetic over merges mixes methods)::

    experts:
      ties: {merge: ties.yaml}
      average: {merge: {experts: {math: ..., code: ...}, method: linear, parameters: [...]}}

Two more entries serve single methods: ``statistics``, a directory that ``evomerge calibrate``
wrote, and ``anchor``, a checkpoint or a merge that Bayesian merging stays near.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from evomerge.checkpoints.layout import MODULES, TOWERS, Place
from evomerge.documents import did_you_mean, located, read_yaml, validate
from evomerge.errors import ConfigError
from evomerge.methods import Method, Parameter, get_method

DType = Literal["base", "float32", "float16", "bfloat16"]
# of one parameter: shared (a whole number if it is an integer), one an expert, or a switch
Value = float | int | tuple[float, ...] | bool


class Source(BaseModel):
    """Where a checkpoint is found, and what it must contain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class Merged(BaseModel):
    """A model that is itself a merge; without a base it takes that of the recipe around it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    merge: Recipe


class Group(BaseModel):
    """The parameters of the tensors that ``tensors`` selects; the other keys are parameters."""

    model_config = ConfigDict(frozen=True, extra="allow")

    tensors: str

    @field_validator("tensors")
    @classmethod
    def _selector(cls, value: str) -> str:
        Selector.parse(value)
        return value

    @property
    def values(self) -> dict[str, Any]:
        """The parameters as written: a number, a bool, or a mapping from expert to number."""
        return dict(self.model_extra or {})


class Recipe(BaseModel):
    """See the module's docstring for the meaning of each field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Source
    experts: dict[str, Source | Merged]
    method: str
    parameters: tuple[Group, ...]
    seed: int = 0
    dtype: DType = "base"
    anchor: Source | Merged | None = None
    statistics: Source | None = None

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, data: Any) -> Any:
        """Inner merges without a base get this one's."""
        if not isinstance(data, dict) or "base" not in data:
            return data
        inner = [*(data.get("experts") or {}).values(), data.get("anchor")]
        for entry in inner:
            if isinstance(entry, dict) and isinstance(entry.get("merge"), dict):
                entry["merge"].setdefault("base", data["base"])
        return data

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        at: tuple[str | int, ...] = ("method",)
        try:
            method = get_method(self.method)
            if self.parameters:
                check_experts(method, list(self.experts))
            missing = method.statistics + method.base_statistics
            if missing and self.statistics is None and self.parameters:
                raise ConfigError(
                    f"method {self.method!r} needs statistics ({', '.join(missing)}); collect them "
                    f"with `evomerge calibrate` and add `statistics: DIRECTORY`"
                )
            for index, group in enumerate(self.parameters):
                at = ("parameters", index)
                group_values(method, group, self.order())
        except ConfigError as error:
            raise located(at, error) from None
        return self

    def order(self) -> tuple[str, ...]:
        """The experts as the method gets them: sorted, unless their order has a meaning."""
        names = list(self.experts)
        return tuple(names if get_method(self.method).ordered else sorted(names))

    def to_yaml(self) -> str:
        """The recipe as a file's text; ``load_recipe`` gives the equal recipe back."""
        data = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def load_recipe(path: Path) -> Recipe:
    """Reads a recipe file; relative paths in it count from its own folder.

    Raises:
        ConfigError: names file, line and remedy.
    """
    document = read_yaml(path)
    _load_inner(document.data, path.parent)
    return localised(validate(Recipe, document), path.parent)


def _load_inner(data: Any, folder: Path) -> None:
    """Puts the recipe files that experts and anchor name in place of their names."""
    if not isinstance(data, dict):
        return
    experts = data.get("experts")
    for entry in [*(experts.values() if isinstance(experts, dict) else ()), data.get("anchor")]:
        if isinstance(entry, dict) and isinstance(entry.get("merge"), str):
            inner = load_recipe((folder / entry["merge"]).expanduser())
            entry["merge"] = inner.model_dump(exclude_none=True)
        elif isinstance(entry, dict):
            _load_inner(entry.get("merge"), folder)


def localised(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the paths that exist in ``folder`` made absolute, inner merges included."""

    def local(source: Source | Merged) -> Source | Merged:
        if isinstance(source, Merged):
            return Merged(merge=localised(source.merge, folder))
        return _local(source, folder)

    return recipe.model_copy(
        update={
            "base": _local(recipe.base, folder),
            "experts": {name: local(source) for name, source in recipe.experts.items()},
            "anchor": recipe.anchor and local(recipe.anchor),
            "statistics": recipe.statistics and _local(recipe.statistics, folder),
        }
    )


def _local(source: Source, folder: Path) -> Source:
    local = (folder / source.path).expanduser()
    return source.model_copy(update={"path": str(local.resolve())}) if local.exists() else source


def check_experts(method: Method, experts: list[str]) -> None:
    """ConfigError if the method cannot work on that many experts."""
    if len(experts) < method.min_experts or (
        method.max_experts is not None and len(experts) > method.max_experts
    ):
        wanted = f"{method.min_experts} to {method.max_experts or 'any number of'}"
        raise ConfigError(
            f"method {method.name!r} takes {wanted} experts, found {len(experts)}: "
            f"{', '.join(experts)}"
        )


def group_values(method: Method, group: Group, experts: tuple[str, ...]) -> dict[str, Value]:
    """Every parameter of the method for one group, defaults filled in, in the order of experts."""
    given = group.values
    for name in given:
        method.parameter(name)
    return {
        p.name: _value(p, given.get(p.name, p.default), experts, group.tensors)
        for p in method.parameters
    }


def _value(parameter: Parameter, given: Any, experts: tuple[str, ...], at: str) -> Value:
    where = f"parameter {parameter.name!r} of {at}"
    if parameter.switch:
        if given not in (True, False):
            raise ConfigError(f"{where}: expected true or false, found {given!r}")
        return bool(given)
    if parameter.integer:
        return _whole(given, where)
    if not parameter.per_expert:
        return _number(given, where)
    if not isinstance(given, Mapping):
        return (_number(given, where),) * len(experts)
    unknown = [name for name in given if name not in experts]
    missing = [name for name in experts if name not in given]
    if unknown:
        raise ConfigError(f"{where}: unknown expert {unknown[0]!r}; {_known(unknown[0], experts)}")
    if missing:
        raise ConfigError(f"{where}: no value for expert {missing[0]!r}; give one for each expert")
    return tuple(_number(given[name], where) for name in experts)


def _known(name: str, experts: Iterable[str]) -> str:
    return did_you_mean(name, list(experts))


def _number(given: Any, where: str) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise ConfigError(f"{where}: expected a finite number, found {given!r}")
    return float(given)


def _whole(given: Any, where: str) -> int:
    number = _number(given, where)
    if number != int(number):
        raise ConfigError(f"{where}: expected a whole number, found {given!r}")
    return int(number)


@dataclass(frozen=True)
class Selector:
    """``tower/blocks/modules``: which tensors a group holds.

    Towers and modules are names or comma-separated lists; blocks are numbers and ranges such as
    ``0-5,8``; ``-`` stands for tensors outside the blocks, and ``*`` for anything.
    """

    towers: frozenset[str] | None
    blocks: frozenset[int | None] | None
    modules: frozenset[str] | None

    @classmethod
    def parse(cls, text: str) -> Selector:
        parts = text.split("/")
        if len(parts) != 3 or not all(parts):
            raise ValueError(
                f"tensors must be 'tower/blocks/modules' such as language/0-5/attention,mlp or "
                f"*/*/*, found {text!r}"
            )
        towers, blocks, modules = parts
        return cls(_names(towers, TOWERS), _blocks(blocks), _names(modules, MODULES))

    def matches(self, place: Place) -> bool:
        return (
            (self.towers is None or place.tower in self.towers)
            and (self.blocks is None or place.block in self.blocks)
            and (self.modules is None or place.module in self.modules)
        )


def _names(text: str, known: Sequence[str]) -> frozenset[str] | None:
    if text == "*":
        return None
    for name in text.split(","):
        if name not in known:
            raise ValueError(f"no tower or module is called {name!r}; {did_you_mean(name, known)}")
    return frozenset(text.split(","))


def _blocks(text: str) -> frozenset[int | None] | None:
    if text == "*":
        return None
    blocks: set[int | None] = set()
    for part in text.split(","):
        if part == "-":
            blocks.add(None)
        elif match := re.fullmatch(r"(\d+)(?:-(\d+))?", part):
            first, last = int(match[1]), int(match[2] or match[1])
            blocks.update(range(first, last + 1))
        else:
            raise ValueError(
                f"blocks must be numbers, ranges such as 0-5, '-' or '*', found {part!r}"
            )
    return frozenset(blocks)


def select(recipe: Recipe, layout: Mapping[str, Place]) -> dict[str, Group]:
    """The group of every selected tensor.

    Raises:
        ConfigError: a group selects nothing, or a tensor is selected twice.
    """
    selected: dict[str, Group] = {}
    for group in recipe.parameters:
        selector = Selector.parse(group.tensors)
        names = [name for name, place in layout.items() if selector.matches(place)]
        if not names:
            raise ConfigError(
                f"the recipe's entry {group.tensors!r} selects no tensor of the base; "
                f"`evomerge inspect` lists towers, blocks and modules"
            )
        for name in names:
            if name in selected:
                raise ConfigError(
                    f"{name} is selected by {selected[name].tensors!r} and by {group.tensors!r}; "
                    f"the entries of a recipe must not overlap"
                )
            selected[name] = group
    return selected
