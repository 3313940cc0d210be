"""Loading an exported checkpoint back and scoring it afresh: it must do what the candidate did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.checkpoints.sources import open_sources
from evomerge.config import experiment_from
from evomerge.engine.study import open_objectives
from evomerge.engine.worker import Worker
from evomerge.errors import IntegrityError
from evomerge.ledger.fold import Scores
from evomerge.recipe import Recipe, Source


def rescore(study: Mapping[str, Any], model: Path, scores: Scores) -> Scores:
    """Scores the checkpoint in ``model`` on the search split as a study's worker would.

    Objectives that look at the weights alone are left out: they count what a recipe moved.

    Raises:
        IntegrityError: an item is scored otherwise than when it was a candidate.
    """
    experiment = experiment_from(
        {**study["experiment"], "name": study["name"], "budget": {"candidates": 1}}
    )
    objectives = tuple(o for o in open_objectives(experiment) if o.items("search"))
    worker = Worker(open_sources(str(model), {}), objectives, experiment.backend)
    try:
        whole = Recipe(base=Source(path=str(model)), experts={}, method="linear", parameters=())
        found = worker.score(whole, "search")
    finally:
        worker.close()
    for name, items in found.items.items():
        if items != scores.items[name]:
            differing = sum(a != b for a, b in zip(items, scores.items[name], strict=True))
            raise IntegrityError(
                f"{model} answers {differing} of {len(items)} items of {name} otherwise than the "
                f"candidate did, although its weights are the same; score and export with the same "
                f"device, dtype and versions"
            )
    return found
