"""An experiment with all that it names opened and checked: what driver and workers share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge import backends
from evomerge.backends.config import ServerConfig
from evomerge.checkpoints.catalog import fingerprint
from evomerge.checkpoints.layout import layout
from evomerge.checkpoints.sources import Sources, open_sources
from evomerge.checkpoints.statistics import open_statistics
from evomerge.config import AGGREGATES, Experiment, SearchConfig, check_names
from evomerge.engine.references import Reference, references, starts
from evomerge.errors import ConfigError
from evomerge.grouping import Cell
from evomerge.instantiate import FLOATING, check_statistics
from evomerge.methods import get_method
from evomerge.recipe import Source
from evomerge.scoring.measures import Perplexity
from evomerge.scoring.objectives import Objective, load_objective
from evomerge.search import check_space
from evomerge.search.algorithms import SearchSettings, check_settings
from evomerge.search.auto import choose
from evomerge.space import Space, SpaceSpec, bind


@dataclass(frozen=True)
class Study:
    """An opened experiment."""

    experiment: Experiment
    sources: Sources
    objectives: tuple[Objective, ...]
    space: Space
    references: tuple[Reference, ...]

    @property
    def directions(self) -> dict[str, str]:
        """Objective name to ``maximise`` or ``minimise``."""
        return {o.name: o.direction for o in self.objectives}

    @property
    def slots(self) -> int:
        """How many candidates a worker scores together."""
        return self._adapters or 1

    @cached_property
    def _adapters(self) -> int | None:
        return adapter_slots(self.experiment, self.sources, self.objectives)

    def body(self) -> dict[str, Any]:
        """What makes this study this one and no other; the first event of its ledger."""
        space = self.space
        return {
            "name": self.experiment.name,
            "experiment": self.experiment.identity(),
            "base": space.base.model_dump(),
            "experts": {name: source.model_dump() for name, source in space.experts.items()},
            **({"statistics": space.statistics.model_dump()} if space.statistics else {}),
            "objectives": {o.name: o.describe() for o in self.objectives},
            "cells": [[c.selector, c.column, c.position] for c in space.cells],
            "genes": [[g.name, g.low, g.high, g.log] for g in space.genes],
            **({"serves": "adapters"} if self._adapters else {}),
        }


def open_study(experiment: Experiment) -> Study:
    """Opens sources and objectives of an experiment and fits its space to them.

    Raises:
        InputError: whatever cannot be used, before any work is done.
    """
    check_settings(*search_settings(experiment))
    objectives = open_objectives(experiment)
    paths = space_paths(experiment)
    sources = open_sources(experiment.base, {**experiment.experts, **paths})
    base = Source(path=experiment.base, sha256=fingerprint(sources.base))

    def sealed(paths: Mapping[str, str]) -> dict[str, Source]:
        return {
            name: Source(path=path, sha256=fingerprint(sources.experts[name].weights))
            for name, path in paths.items()
        }

    tensors = sources.base.tensors
    changed = frozenset(
        name
        for expert in paths
        for name in sources.experts[expert].changed
        if tensors[name].dtype in FLOATING
    )
    statistics = None
    if experiment.statistics is not None:
        collected = open_statistics(experiment.statistics)
        check_statistics(collected, sources, get_method(experiment.space.method), paths)
        statistics = Source(path=experiment.statistics, sha256=collected.fingerprint)
    space = bind(
        experiment.space,
        base,
        sealed(paths),
        layout(tensors),
        changed,
        experiment.search.seed,
        statistics,
    )
    experiment = chosen(experiment, objectives, space)
    settings, _ = search_settings(experiment)
    check_space(settings, space.genes, experiment.budget.candidates)
    points = references(space, sources, sealed(experiment.experts))
    points += tuple(starts(space, experiment.starts))
    return Study(experiment, sources, objectives, space, points)


def chosen(experiment: Experiment, objectives: Sequence[Objective], space: Space) -> Experiment:
    """The experiment with the search that `auto` chooses, and why, where it is to choose."""
    if experiment.search.algorithm != "auto":
        return experiment
    items = sum(len(o.items("search")) for o in objectives)
    smooth = any(o.has_signal or isinstance(o.measure, Perplexity) for o in objectives)
    choice = choose(space.dimension, items, smooth, experiment.budget.candidates)
    search = experiment.search.model_copy(
        update={"algorithm": choice.algorithm, "options": dict(choice.options)}
    )
    return experiment.model_copy(update={"search": search, "auto": choice.why})


def with_search_of(study: Study, body: Mapping[str, Any]) -> Study:
    """The study with the search that `auto` chose in the session that began it.

    ``body`` is its ledger's first event. The choice looks at the budget, which may change.
    """
    recorded = body["experiment"]
    experiment = study.experiment
    if not experiment.auto or not recorded.get("auto"):
        return study
    search = SearchConfig(**recorded["search"])
    update = {"search": search, "auto": recorded["auto"]}
    return replace(study, experiment=experiment.model_copy(update=update))


def space_paths(experiment: Experiment) -> dict[str, str]:
    """What the space's coefficients are of: the experts, or the directions that were made of them.

    Raises:
        ConfigError: the directions have not been made yet.
    """
    if not experiment.directions:
        return experiment.experts
    if experiment.made is None:
        raise ConfigError("the experiment's directions have not been made; see make_directions")
    return {
        name: experiment.experts[name] if kind == "expert" else str(Path(experiment.made) / name)
        for name, kind in experiment.directions.items()
    }


def adapter_slots(
    experiment: Experiment, sources: Sources, objectives: Sequence[Objective]
) -> int | None:
    """How many candidates a worker serves together as LoRA adapters; None if as weights.

    Raises:
        ConfigError: the backend serves adapters only, and something here has none.
    """
    space = experiment.space
    return backends.slots(experiment.backend, space.method, space.dtype, sources, objectives)


def open_objectives(experiment: Experiment) -> tuple[Objective, ...]:
    """The experiment's objectives with their data, and a check that ``optimise`` names them."""
    objectives = tuple(
        load_objective(o["inline"], Path(o["folder"]))
        if "inline" in o
        else load_objective(o["source"], Path.cwd())
        for o in experiment.objectives
    )
    names = tuple(o.name for o in objectives)
    if len(set(names)) < len(names):
        raise ConfigError(f"objectives must differ in name, found {', '.join(names)}")
    check_names(experiment, names)
    if not any(o.direction == "maximise" for o in objectives):
        for name in experiment.optimise.names:
            if name in AGGREGATES:
                raise ConfigError(
                    f"optimise names {name!r}, which is over the objectives that are maximised, "
                    f"but none is; name objectives instead: {', '.join(names)}"
                )
    return objectives


def search_settings(experiment: Experiment) -> tuple[SearchSettings, int]:
    """What the search is set to, and how many objectives it sees."""
    search, optimise = experiment.search, experiment.optimise
    settings = SearchSettings(search.algorithm, search.seed, search.options)
    return settings, 1 if optimise.scalarise else len(optimise.names)


def space_of(study: Mapping[str, Any]) -> Space:
    """The fitted space of a ledger's ``study`` event, without opening a checkpoint."""
    return Space(
        spec=SpaceSpec(**study["experiment"]["space"]),
        base=Source(**study["base"]),
        experts={name: Source(**source) for name, source in study["experts"].items()},
        cells=tuple(Cell(*cell) for cell in study["cells"]),
        seed=study["experiment"]["search"]["seed"],
        statistics=Source(**study["statistics"]) if "statistics" in study else None,
    )


def fingerprint_of(body: Mapping[str, Any]) -> str:
    """sha256 of a ``study`` event's body: equal for the sessions of one study.

    Its name is left out, and where a server is and how it is asked.
    """
    experiment = dict(body["experiment"])
    backend = experiment["backend"]
    if backend["name"] == "server":
        changing = ServerConfig.changing
        experiment["backend"] = {k: v for k, v in backend.items() if k not in changing}
    # unsorted: the order of experts has a meaning
    text = json.dumps({k: v for k, v in {**body, "experiment": experiment}.items() if k != "name"})
    return hashlib.sha256(text.encode()).hexdigest()
