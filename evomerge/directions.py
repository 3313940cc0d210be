"""Directions: static merges, written once, whose coefficients a search then looks for.

A direction is the result of any merge method. Added with coefficients, merged = base + Σ cⱼ dⱼ,
they let a search mix methods by layer at the cost of task arithmetic, however dear they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evomerge.config import Direction, Experiment
from evomerge.export import export
from evomerge.grouping import Grouping
from evomerge.instantiate import open_merge
from evomerge.recipe import Group, Recipe, Source
from evomerge.report.card import recipe_card
from evomerge.report.provenance import provenance

Announce = Callable[[str], None]


def make_directions(
    experiment: Experiment, folder: Path, announce: Announce = lambda name: None
) -> Experiment:
    """Writes the experiment's directions that are not yet in ``folder``, each a float32 checkpoint.

    Returns the experiment with the folder filled in; one without directions comes back as it is.
    ``announce`` is called with the name of each direction before it is made.
    """
    for name, direction in experiment.directions.items():
        if direction == "expert":
            continue
        if not (folder / name).is_dir():  # published by one rename: it is there whole or not at all
            announce(name)
            recipe = direction_recipe(experiment, direction)
            merge = open_merge(recipe, streaming=True)
            export(merge, folder / name, recipe_card(recipe, provenance(merge.sources)))
    if not experiment.directions:
        return experiment
    return experiment.model_copy(update={"made": str(folder.resolve())})


def direction_recipe(experiment: Experiment, direction: Direction) -> Recipe:
    """The static merge that a direction stands for."""
    everything = (Group(tensors=moved(experiment.space.groups)),)
    chosen = experiment.experts if direction.experts is None else direction.experts
    return Recipe(
        base=Source(path=experiment.base),
        experts={name: Source(path=experiment.experts[name]) for name in chosen},
        method=direction.method,
        parameters=everything if direction.parameters is None else direction.parameters,
        seed=direction.seed,
        dtype="float32",
        statistics=Source(path=experiment.statistics) if experiment.statistics else None,
    )


def moved(groups: Grouping) -> str:
    """The selector of all tensors that a space's groups move."""
    modules = ",".join(m if isinstance(m, str) else ",".join(m) for m in groups.modules)
    return f"{','.join(groups.towers)}/*/{modules}"
