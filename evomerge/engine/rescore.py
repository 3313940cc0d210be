"""Scoring outside the loop: a candidate once more, or the checkpoint that it was exported to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.checkpoints.sources import open_sources
from evomerge.config import Experiment, experiment_from
from evomerge.engine.population import Population
from evomerge.engine.rungs import assembled
from evomerge.engine.study import open_objectives
from evomerge.engine.tasks import Task
from evomerge.engine.worker import Worker, open_worker
from evomerge.errors import CandidateError, ConfigError, IntegrityError
from evomerge.ledger.fold import Scores
from evomerge.ledger.seen import Seen
from evomerge.recipe import Group, Recipe, Source
from evomerge.scoring.blocks import Part, blocks
from evomerge.scoring.objectives import Objective, Split, load_objective


def score_candidate(
    study: Mapping[str, Any], recipe: Recipe, objectives: Sequence[str] | None, split: Split
) -> Scores:
    """Scores a recipe of a study on any objectives, by name, folder or file; by default its own.

    Raises:
        ConfigError: no objective has items of that split.
        CandidateError: the merged weights or a score are not finite.
    """
    experiment = _experiment(study)
    chosen = (
        tuple(load_objective(o, Path.cwd()) for o in objectives)
        if objectives
        else tuple(o for o in open_objectives(experiment) if o.items(split))
    )
    lacking = [o.name for o in chosen if not o.items(split)]
    if lacking or not chosen:
        raise ConfigError(
            f"objective {', '.join(lacking) or 'of the run'} has no items of the "
            f"{split.replace('_', '-')} split; give the other --split"
        )
    experts = {n: s.path for n, s in recipe.experts.items() if isinstance(s, Source)}
    sources = open_sources(experiment.base, {**experiment.experts, **experts})
    worker = open_worker(experiment, sources, chosen)
    try:
        return worker.score(recipe, split)
    finally:
        worker.close()


def _experiment(study: Mapping[str, Any]) -> Experiment:
    return experiment_from(
        {**study["experiment"], "name": study["name"], "budget": {"candidates": 1}}
    )


def scored_in(
    worker: Worker | Population,
    recipe: Recipe,
    objectives: Sequence[Objective],
    parts: Sequence[Part],
) -> Scores:
    """Scores a recipe on the search split: these parts of it, then the rest."""
    if not parts:
        return worker.score(recipe, "search")
    divided = blocks(objectives)
    first = {number for part in parts for number in part.blocks}
    rest = Part(tuple(number for number in range(len(divided)) if number not in first))
    tasks = [Task(0, recipe, "search", part) for part in (*parts, rest)]
    outcomes = [worker.run([task])[0] for task in tasks]
    for outcome in outcomes:
        if outcome.seen is None:
            raise CandidateError(f"it cannot be scored: {outcome.reason}")
    return assembled(objectives, divided, [o.seen for o in outcomes if o.seen is not None])


def rescore(
    study: Mapping[str, Any],
    model: Path,
    scores: Scores,
    base: str | None = None,
    exact: bool = True,
    rungs: Sequence[Seen] = (),
) -> Scores:
    """Scores the checkpoint in ``model`` on the search split as a study's worker would.

    With a ``base``, ``model`` is a LoRA adapter of it. Objectives that look at the weights alone
    are left out: they count what a recipe moved. With ``rungs``, those of the candidate, items are
    asked in these parts: what is in one batch may decide the last bits.

    Raises:
        IntegrityError: ``exact``, and an item is scored otherwise than when it was a candidate.
    """
    experiment = _experiment(study)
    objectives = tuple(o for o in open_objectives(experiment) if o.items("search"))
    whole = Recipe(base=Source(path=base or str(model)), experts={}, method="linear", parameters=())
    worker: Worker | Population
    if base is None:
        worker = Worker(open_sources(str(model), {}), objectives, experiment.backend)
    else:
        worker = open_worker(experiment, open_sources(base, {"merged": str(model)}), objectives)
        alone = {"experts": {"merged": Source(path=str(model))}}
        whole = whole.model_copy(update={**alone, "parameters": (Group(tensors="*/*/*"),)})
    try:
        found = scored_in(worker, whole, objectives, [seen.part for seen in rungs])
    finally:
        worker.close()
    for name, items in found.items.items():
        if exact and items != scores.items[name]:
            differing = sum(a != b for a, b in zip(items, scores.items[name], strict=True))
            raise IntegrityError(
                f"{model} answers {differing} of {len(items)} items of {name} otherwise than the "
                f"candidate did, although its weights are the same; score and export with the same "
                f"device, dtype and versions"
            )
    return found
