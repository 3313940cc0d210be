"""Search spaces: a genome in the unit box <-> the values of named genes -> a Recipe.

A space file declares a method, how the tensors are grouped, and which parameters are searched::

    name: layerwise-ties
    summary: TIES with a weight an expert and a density for every block and module kind
    method: ties
    groups: {towers: [language], depth: each, modules: [attention, mlp]}
    genes:
      weight:  {per: [expert, group], low: 0.0, high: 1.5}
      density: {per: [group], low: 0.05, high: 1.0}
      scale:   {fixed: 1.0}

``depth`` is ``each`` (every block its own group) or a number of groups of consecutive blocks; a
list inside ``modules`` joins module kinds into one group. A gene's ``per`` says what it is drawn
for: ``expert``, ``group``, both, or nothing (one value for all). ``log: true`` searches on a
logarithmic scale; whole numbers are rounded. ``anchors: A`` (with ``per: [group]``) searches A
values spread over the depth and interpolates linearly between them. A parameter that is not
mentioned has its method's default.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from evomerge.checkpoints.layout import Place, layout
from evomerge.documents import located
from evomerge.errors import ConfigError
from evomerge.grouping import Cell, Grouping, column
from evomerge.methods import Method, Parameter, get_method
from evomerge.recipe import DType, Group, Recipe, Selector, Source, check_experts, group_values

Genome = tuple[float, ...]


class GeneSpec(BaseModel):
    """How one parameter of the method is searched, or the value it is fixed to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per: tuple[Literal["expert", "group"], ...] = ()
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    log: bool = False
    anchors: int | None = Field(default=None, ge=2)
    fixed: float | bool | dict[str, float] | None = None

    @model_validator(mode="after")
    def _check(self) -> GeneSpec:
        if self.fixed is not None:
            if self.per or self.low is not None or self.high is not None or self.anchors:
                raise ValueError("a fixed gene takes no per, low, high or anchors")
            return self
        if self.anchors and "group" not in self.per:
            raise ValueError("anchors are spread over the depth: add group to per")
        return self

    def range(self, parameter: Parameter) -> tuple[float, float]:
        """Its own bounds, or the parameter's where it gives none."""
        return (
            parameter.low if self.low is None else self.low,
            parameter.high if self.high is None else self.high,
        )


class SpaceSpec(BaseModel):
    """A search space as written in a file; ``bind`` fits it to a base and its experts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "inline"
    summary: str = ""
    method: str
    groups: Grouping = Grouping()
    genes: dict[str, GeneSpec]
    dtype: DType = "base"

    @model_validator(mode="after")
    def _check(self) -> SpaceSpec:
        at: tuple[str, ...] = ("method",)
        try:
            method = get_method(self.method)
            for name, gene in self.genes.items():
                at = ("genes", name)
                parameter = method.parameter(name)
                if "expert" in gene.per and not parameter.per_expert:
                    raise ConfigError(f"parameter {name!r} of {self.method} is not per expert")
                if parameter.switch and gene.fixed is None:
                    raise ConfigError(f"parameter {name!r} is a switch: give it as fixed")
                low, high = gene.range(parameter)
                if low >= high:
                    raise ConfigError(f"low must be below high, found {low} and {high}")
                if gene.log and low <= 0:
                    raise ConfigError(f"a logarithmic gene needs low above 0, found {low}")
        except ConfigError as error:
            raise located(at, error) from None
        return self


@dataclass(frozen=True)
class Gene:
    """One coordinate of the genome."""

    name: str
    low: float
    high: float
    log: bool

    def decode(self, unit: float) -> float:
        """The value at ``unit`` in [0, 1]."""
        if self.log:
            return math.exp(math.log(self.low) + unit * math.log(self.high / self.low))
        return self.low + unit * (self.high - self.low)

    def slope(self, unit: float) -> float:
        """The derivative of the value at ``unit``."""
        if self.log:
            return self.decode(unit) * math.log(self.high / self.low)
        return self.high - self.low

    def encode(self, value: float) -> float:
        """The place in [0, 1] of a value; outside [0, 1] for a value outside the range."""
        if self.log:
            if value <= 0:
                return -math.inf
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Space:
    """A space fitted to a base and its experts: unit box <-> gene values, one to one."""

    spec: SpaceSpec
    base: Source
    experts: Mapping[str, Source]
    cells: tuple[Cell, ...]
    seed: int = 0
    statistics: Source | None = None
    genes: tuple[Gene, ...] = field(init=False)

    def __post_init__(self) -> None:
        genes = [gene for name in self._searched for gene in self._genes_of(name)]
        if not genes:
            raise ConfigError(f"space {self.spec.name!r} has no gene to search: all are fixed")
        object.__setattr__(self, "genes", tuple(genes))

    @property
    def dimension(self) -> int:
        return len(self.genes)

    def decode(self, genome: Sequence[float]) -> dict[str, float]:
        """Gene values by gene name; the inverse of ``encode``.

        Raises:
            ValueError: the genome has another length, or leaves the unit box.
        """
        if len(genome) != self.dimension or not all(0 <= u <= 1 for u in genome):
            raise ValueError(
                f"expected {self.dimension} numbers between 0 and 1, found {list(genome)}"
            )
        return {g.name: g.decode(u) for g, u in zip(self.genes, genome, strict=True)}

    def encode(self, values: Mapping[str, float]) -> Genome:
        """The genome of the given gene values; the inverse of ``decode``."""
        return tuple(g.encode(values[g.name]) for g in self.genes)

    def recipe(self, genome: Sequence[float]) -> Recipe:
        """The merged model that the genome stands for."""
        values = self.decode(genome)
        return Recipe(
            base=self.base,
            experts=dict(self.experts),
            method=self.spec.method,
            parameters=tuple(
                Group(
                    tensors=cell.selector,
                    **{p.name: self._value(p.name, cell, values) for p in self._method.parameters},
                )
                for cell in self.cells
            ),
            seed=self.seed,
            dtype=self.spec.dtype,
            statistics=self.statistics,
        )

    def slopes(self, genome: Sequence[float], by_weight: Sequence[float]) -> tuple[float, ...]:
        """Derivatives by the genome of what has the derivatives ``by_weight``.

        Those are by the weights of ``recipe(genome)``: its groups outermost, then the experts as
        the group's weights name them, or one for all. Genes of other parameters get 0.
        """
        by_value = dict.fromkeys((gene.name for gene in self.genes), 0.0)
        weights = ((cell, e) for cell in self.cells for e in self._experts_of("weight"))
        for (cell, expert), slope in zip(weights, by_weight, strict=True):
            first, second, along = self.genes_at("weight", expert, cell)
            by_value[first] += (1 - along) * slope
            by_value[second] += along * slope
        return tuple(
            gene.slope(unit) * by_value[gene.name]
            for gene, unit in zip(self.genes, genome, strict=True)
        )

    def plain(self, weights: Mapping[str, float]) -> Genome | None:
        """The genome of ``θ₀ + Σ wᵢ τᵢ``, or None if it is not in this space."""
        names = list(self.experts) if self._method.ordered else sorted(self.experts)
        wanted = self._method.plain(tuple(weights[n] for n in names))
        if wanted is None:
            return None
        by_expert = {
            name: dict(zip(names, value, strict=True)) if isinstance(value, tuple) else value
            for name, value in wanted.items()
        }
        return self._constant(by_expert)

    def _constant(self, wanted: Mapping[str, Any]) -> Genome | None:
        """The genome with the same parameters in every group, or None if a range excludes them."""
        values: dict[str, float] = {}
        for parameter in self._method.parameters:
            name = parameter.name
            if name not in wanted:
                if name in self._searched:
                    values.update({g.name: g.decode(0.5) for g in self._genes_of(name)})
                continue
            if name not in self._searched:
                if not _equal(self._fixed(name), wanted[name], self.experts):
                    return None
                continue
            value = wanted[name]
            for expert in self._experts_of(name):
                if isinstance(value, Mapping) and expert is None and len({*value.values()}) > 1:
                    return None
                one = value[expert or next(iter(value))] if isinstance(value, Mapping) else value
                values.update({g.name: one for g in self._genes_of(name, [expert])})
        genome = self.encode(values)
        if not all(-1e-12 <= u <= 1 + 1e-12 for u in genome):
            return None
        return tuple(min(max(u, 0.0), 1.0) for u in genome)

    def moves(self, names: Iterable[str]) -> frozenset[str]:
        """Those of the base's tensors ``names`` that lie in one of the space's groups."""
        selectors = [Selector.parse(cell.selector) for cell in self.cells]
        return frozenset(
            name
            for name, where in layout(names).items()
            if any(selector.matches(where) for selector in selectors)
        )

    @property
    def smooth(self) -> bool:
        """Whether merged tensors are differentiable in all that is searched: weights alone, of a
        method that is smooth in them."""
        return self._method.smooth and set(self._searched) == {"weight"}

    @property
    def _method(self) -> Method:
        return get_method(self.spec.method)

    @cached_property
    def _searched(self) -> dict[str, GeneSpec]:
        return {name: gene for name, gene in self.spec.genes.items() if gene.fixed is None}

    def _fixed(self, name: str) -> float | bool | Mapping[str, float]:
        spec = self.spec.genes.get(name)
        parameter = self._method.parameter(name)
        value = parameter.default if spec is None or spec.fixed is None else spec.fixed
        if isinstance(value, Mapping):
            return value
        return bool(value) if parameter.switch else int(value) if parameter.integer else value

    def _experts_of(self, name: str) -> list[str | None]:
        return list(self.experts) if "expert" in self._searched[name].per else [None]

    def _genes_of(self, name: str, experts: Sequence[str | None] | None = None) -> list[Gene]:
        spec, parameter = self._searched[name], self._method.parameter(name)
        low, high = spec.range(parameter)
        places: list[str | None] = [None]
        if spec.anchors:
            columns = dict.fromkeys(cell.column for cell in self.cells)
            places = [f"{c}@{a}" for c in columns for a in range(spec.anchors)]
        elif "group" in spec.per:
            places = [cell.selector for cell in self.cells]
        return [
            Gene(_gene_name(name, expert, place), low, high, spec.log)
            for place in places
            for expert in (self._experts_of(name) if experts is None else experts)
        ]

    def _value(self, name: str, cell: Cell, values: Mapping[str, float]) -> Any:
        """The value of one parameter in one group: a number, or a mapping from expert to number."""
        if name not in self._searched:
            return self._fixed(name)
        by_expert = {e: self._one(name, e, cell, values) for e in self._experts_of(name)}
        if None not in by_expert:
            return by_expert
        shared = by_expert[None]
        return round(shared) if self._method.parameter(name).integer else shared

    def _one(self, name: str, expert: str | None, cell: Cell, values: Mapping[str, float]) -> float:
        first, second, along = self.genes_at(name, expert, cell)
        a, b = values[first], values[second]
        return a + (b - a) * along

    def genes_at(self, name: str, expert: str | None, cell: Cell) -> tuple[str, str, float]:
        """The two genes between which a parameter lies in a group, and how far along, 0 to 1.

        They are the same gene but where anchors are interpolated.
        """
        spec = self._searched[name]
        if spec.anchors:
            scaled = cell.position * (spec.anchors - 1)
            left = min(int(scaled), spec.anchors - 2)
            a, b = (_gene_name(name, expert, f"{cell.column}@{k}") for k in (left, left + 1))
            return a, b, scaled - left
        gene = _gene_name(name, expert, cell.selector if "group" in spec.per else None)
        return gene, gene, 0.0


def _gene_name(parameter: str, expert: str | None, place: str | None) -> str:
    """``weight[vqa] language/0/mlp``; the expert and the place only where the gene has them."""
    name = f"{parameter}[{expert}]" if expert else parameter
    return f"{name} {place}" if place else name


def _equal(fixed: Any, wanted: Any, experts: Mapping[str, Source]) -> bool:
    def spread(value: Any) -> list[float]:
        return [float(value[e] if isinstance(value, Mapping) else value) for e in experts]

    return spread(fixed) == spread(wanted)


def bind(
    spec: SpaceSpec,
    base: Source,
    experts: Mapping[str, Source],
    places: Mapping[str, Place],
    changed: frozenset[str],
    seed: int = 0,
    statistics: Source | None = None,
) -> Space:
    """Fits a space to a base (its layout) and its experts (the tensors that any of them changes).

    Groups in which no expert changes anything get no genes: they could not have an effect.

    Raises:
        ConfigError: no group is left, or the method does not take that many experts.
    """
    method = get_method(spec.method)
    check_experts(method, list(experts))
    fixed = {name: gene.fixed for name, gene in spec.genes.items() if gene.fixed is not None}
    group_values(method, Group(tensors="*/*/*", **fixed), tuple(experts))
    movable = {name: place for name, place in places.items() if name in changed}
    cells = [
        cell
        for tower in spec.groups.towers
        for module in spec.groups.modules
        for cell in column(tower, module, spec.groups.depth, places)
        if any(Selector.parse(cell.selector).matches(place) for place in movable.values())
    ]
    if not cells:
        found = sorted({f"{p.tower}/{p.module}" for p in movable.values()})
        raise ConfigError(
            f"space {spec.name!r} moves nothing: no expert changes a tensor of towers "
            f"{', '.join(spec.groups.towers)} with its modules; they change: "
            f"{', '.join(found) or 'nothing at all'}"
        )
    return Space(spec, base, experts, tuple(cells), seed, statistics)
