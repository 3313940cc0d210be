"""What a search will hold in memory, and how long it will take, before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from evomerge.backends.config import TransformersConfig
from evomerge.checkpoints.headers import ITEM_BYTES
from evomerge.engine.rungs import Rungs
from evomerge.engine.slopes import HELD
from evomerge.engine.study import Study, search_settings
from evomerge.engine.worker import open_worker
from evomerge.scoring.blocks import SLOPE_PASSES, blocks
from evomerge.scoring.evaluate import plan
from evomerge.scoring.objectives import Objective
from evomerge.search.algorithms import check_settings
from evomerge.search.guided import option, wants_slopes

TRIAL = 64  # requests of the measured trial, or as many as a batch has


@dataclass(frozen=True)
class Memory:
    """Bytes that one worker holds: the live model, and the bank's sources.

    ``files`` are read by memory map: on a CPU the system may drop them when it needs the room.
    ``gradients`` are there while slopes are measured, beside the activations of 2,048 tokens.
    """

    model: int
    files: int
    made: int
    gradients: int


@dataclass(frozen=True)
class Duration:
    """Seconds: of a measured candidate, and for the whole budget on all workers.

    ``requests`` were measured of ``of`` that a candidate needs; None as ``total`` where the budget
    is not of candidates or items. Probes count as what their items take, also where a likelihood
    takes less than an answer.
    """

    requests: int
    of: int
    instantiate: float
    score: float
    total: float | None


def memory(study: Study) -> Memory:
    """What a worker holds; from the headers alone."""
    sources, backend = study.sources, study.experiment.backend
    sizes = {n: math.prod(t.shape) for n, t in sources.base.tensors.items()}
    stored = sum(t.nbytes for t in sources.base.tensors.values())
    wide = 4 if backend.name == "transformers" and not _on_gpu(backend) else None
    model = sum(sizes.values()) * wide if wide else stored
    moved = study.space.moves(sources.base.tensors)
    files = sum(sources.base.tensors[n].nbytes for n in moved)
    made = 0
    for expert in sources.experts.values():
        changed = [n for n in expert.changed if n in moved]
        if expert.kind == "full":
            files += sum(ITEM_BYTES[sources.base.tensors[n].dtype] * sizes[n] for n in changed)
        elif getattr(backend, "lora", "weights") == "weights" and study.slots == 1:
            made += sum(4 * sizes[n] for n in changed)
        if study.space.spec.method == "ties":  # the order of magnitudes, for thresholds
            made += sum(4 * sizes[n] for n in changed)
    return Memory(model, files, made, _gradients(study, sum(sizes[n] for n in moved), wide))


def _gradients(study: Study, moved: int, width: int | None) -> int:
    """Bytes of the gradients at so many moved elements: of all objectives, or of as many as fit."""
    if not _by_slopes(study):
        return 0
    stored = study.sources.base.tensors.values()
    one = moved * (width or max(ITEM_BYTES[t.dtype] for t in stored))
    return one * min(len(study.objectives), max(1, HELD // one))


def _by_slopes(study: Study) -> bool:
    """Whether the search's probes are asked for slopes."""
    settings, objectives = search_settings(study.experiment)
    if settings.algorithm != "guided":
        return False
    _, options = check_settings(settings, objectives)
    return wants_slopes(options) and Rungs(study).slopes


def duration(study: Study) -> Duration:
    """Brings up a worker and scores the base on some items, twice: the second time counts.

    Raises:
        InputError: the backend cannot run the base.
    """
    whole = len(plan(study.objectives, "search").requests)
    backend = study.experiment.backend
    size = backend.batch if isinstance(backend, TransformersConfig) else TRIAL
    trial = _cut(study.objectives, size)
    count = len(plan(trial, "search").requests)
    worker = open_worker(study.experiment, study.sources, trial)
    try:
        recipes = {r.name: r.recipe for r in study.references}  # two that merge all experts
        worker.score(recipes["task arithmetic 0.3"], "search")
        timing = worker.score(recipes["weight average"], "search").timing
    finally:
        worker.close()
    score = (sum(timing.values()) - timing["instantiate"]) * whole / max(1, count)
    make = timing["instantiate"]
    return Duration(count, whole, make, score, _total(study, make, score))


def _total(study: Study, make: float, score: float) -> float | None:
    budget = study.experiment.budget
    items = sum(len(o.items("search")) for o in study.objectives)
    limits = [budget.candidates, budget.items and budget.items / max(1, items)]
    candidates = min((limit for limit in limits if limit), default=None)
    if candidates is None:
        return None
    held_out = sum(len(o.items("held_out")) for o in study.objectives)
    points = len(study.references)
    rescored = (points + 4) * held_out / max(1, items)  # four on the front, say
    making = (_made(study, candidates) + points + rescored) * make
    scoring = (candidates + points + rescored) * score
    return (making + scoring) / (study.experiment.pool.workers * study.slots)


def _made(study: Study, candidates: float) -> float:
    """How many merges are made for so many full evaluations: one for the few items of a probe."""
    settings, objectives = search_settings(study.experiment)
    if settings.algorithm != "guided":
        return candidates
    _, options = check_settings(settings, objectives)
    slopes = _by_slopes(study)
    probes = option(options, "probes", slopes)
    startup = option(options, "startup", slopes)
    if not probes:
        return candidates
    share = (SLOPE_PASSES if slopes else 1) / max(1, len(blocks(study.objectives)))
    first = min(startup, candidates / share)
    return first + (candidates - first * share) * (probes + 1) / (probes * share + 1)


def _cut(objectives: Sequence[Objective], count: int) -> tuple[Objective, ...]:
    """The objectives with about ``count`` of their search items, in equal shares."""
    share = max(1, count // max(1, len(objectives)))
    return tuple(
        replace(o, splits={split: items[:share] for split, items in o.splits.items()})
        for o in objectives
    )


def _on_gpu(backend: TransformersConfig) -> bool:
    import torch

    return (backend.device or ("cuda" if torch.cuda.is_available() else "cpu")) != "cpu"
