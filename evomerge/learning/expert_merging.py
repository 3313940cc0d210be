"""Expert Merging: coefficients under which the merged model does what each task's expert does.

Zhang et al. 2025 (arXiv 2509.25712). For a few prompts of each task, hidden states and logits are
aligned with those of that task's expert at every position of the prompt and of an answer. The
published code takes that answer from its calibration file; here it is the expert's own greedy one,
so no reference answer is read. Logits are aligned by T² KL(expert ‖ merged): the code's soft
cross-entropy less the expert's entropy, which is constant, so that 0 is agreement. Hidden states
of one layer are compared by their mean squared difference.

Expert Merging++ learns once, hands out coefficients by importance, and learns afresh. The paper
cuts a layer's flattened tensors into chunks with a coefficient each. A recipe gives one weight to a
whole tensor, so here a group of tensors is cut into runs of (block, module kind) pairs, as far as
it has several. Where the groups are that fine already, only the fixing of unimportant ones is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from evomerge.checkpoints.layout import layout
from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError
from evomerge.instantiate import Merge
from evomerge.learning.coefficients import Coefficients, uniform
from evomerge.learning.descent import Descent, Step, descend
from evomerge.learning.session import Prediction, Sample, Session
from evomerge.methods.learned import Learner, Settings
from evomerge.scoring.objectives import Objective

SCALED = {"scale": 1.0}


def learn(session: Session, learner: Learner, settings: Settings) -> Iterator[Step]:
    """Expert Merging, or with a ``budget`` Expert Merging++."""
    space, initial = session.study.space, settings["initial"]
    start = uniform(space, learner.method, SCALED, initial)
    samples = _lessons(session, settings)
    if "budget" not in settings:
        yield from descend(session, _descent(start, samples, settings))
        return
    step = None
    for step in descend(session, _descent(start, samples, settings)):
        yield step
    assert step is not None
    counts = allotted(importance(session, step.coefficients), settings["budget"], settings["power"])
    groups, free = split(session, start, counts)
    start = uniform(space, learner.method, SCALED, initial, groups)
    yield from descend(session, _descent(start, samples, settings, free))


def lessons(session: Session) -> list[tuple[Objective, str]]:
    """Each objective with the expert whose task it is: that of its name, or as the user says.

    An objective belongs to the expert of its name, or of its name's last part ("zoo/vqa": "vqa").
    Objectives that belong to none are left out.

    Raises:
        ConfigError: the user names no expert or no objective, or no objective belongs to anyone.
    """
    experts, objectives = list(session.study.experiment.experts), session.with_items()
    known = [o.name for o in objectives]
    for expert, name in session.items_for:
        if expert not in experts:
            raise ConfigError(
                f"--items-for {expert!r} is no expert; {did_you_mean(expert, experts)}"
            )
        if not any(_called(o, name) for o in objectives):
            raise ConfigError(f"--items-for names objective {name!r}; {did_you_mean(name, known)}")
    said = {
        expert: [n for e, n in session.items_for if e == expert] or [expert] for expert in experts
    }
    found = [
        (objective, expert)
        for expert in experts
        for objective in objectives
        if any(_called(objective, name) for name in said[expert])
    ]
    if not found:
        raise ConfigError(
            f"no objective has an expert's name, so none is known to be its task; say whose task "
            f"each is with --items-for EXPERT=OBJECTIVE; experts: {', '.join(experts)}; "
            f"objectives: {', '.join(known)}"
        )
    return found


def _called(objective: Objective, name: str) -> bool:
    return name in (objective.name, objective.name.rpartition("/")[2])


@dataclass(frozen=True)
class Lesson:
    """What an expert computes at the positions that count: logits, and one hidden state."""

    logits: torch.Tensor
    hidden: torch.Tensor


def _lessons(session: Session, settings: Settings) -> list[Sample]:
    """Samples with what their expert computes, the objectives in turn."""
    whole = {reference.name: reference.recipe for reference in session.study.references}
    of_task = []
    for objective, expert in lessons(session):
        session.load(whole[expert])
        items = session.draw(objective, int(settings["items"]))
        samples = session.answered(objective, items, int(settings["tokens"]))
        of_task.append(_taught(session, samples, settings["depth"]))
    longest = max(len(samples) for samples in of_task)
    return [samples[i] for i in range(longest) for samples in of_task if i < len(samples)]


def _taught(session: Session, samples: list[Sample], depth: float) -> list[Sample]:
    """The samples with every position counting, and what the live model computes there."""
    samples = [replace(sample, count=len(sample.prompt.ids)) for sample in samples]
    with torch.no_grad():
        for batch in session.predictions(session.model, samples, depth):
            for i, found in batch:
                assert found.hidden is not None
                lesson = Lesson(found.logits.cpu(), found.hidden.cpu())
                samples[i] = replace(samples[i], target=lesson)
    return samples


def _descent(
    start: Coefficients,
    samples: list[Sample],
    settings: Settings,
    free: Sequence[bool] | None = None,
) -> Descent:
    window, initial, rate = int(settings["accumulate"]), settings["initial"], settings["rate"]
    groups = sum(free) if free else len(start.groups)

    def alignment(sample: Sample, found: Prediction) -> torch.Tensor:
        assert found.hidden is not None
        logits, hidden = disagreement(sample.target, found, settings["temperature"])
        return logits + settings["hidden"] * hidden

    def drift(coefficients: torch.Tensor) -> torch.Tensor:
        return settings["stability"] * (coefficients - initial).abs().sum() / groups

    in_order = list(range(len(samples)))
    windows = [in_order[i : i + window] for i in range(0, len(in_order), window)]
    return Descent(
        start,
        samples,
        alignment,
        windows * int(settings["epochs"]),
        optimiser=lambda raw: torch.optim.AdamW(raw, rate, weight_decay=1e-5),
        scheduler=lambda optimiser: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
            optimiser, T_0=50, T_mult=2, eta_min=0.1 * rate
        ),
        shape=torch.sigmoid,
        unshape=torch.logit,
        free=free,
        penalty=drift,
        clip=1.0,
        depth=settings["depth"],
    )


def disagreement(
    lesson: Lesson, found: Prediction, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """T² KL(expert ‖ merged) and the hidden states' squared difference, means over positions."""
    assert found.hidden is not None
    wanted = lesson.logits.to(found.logits.device).float() / temperature
    logs = (found.logits.float() / temperature).log_softmax(-1)
    wanted = wanted.log_softmax(-1)
    divergence = (wanted.exp() * (wanted - logs)).sum(-1).mean() * temperature**2
    difference = found.hidden.float() - lesson.hidden.to(found.hidden.device).float()
    return divergence, difference.square().mean()


def importance(session: Session, learned: Coefficients) -> list[float]:
    """``Iₗ = Σᵢ |αₗᵢ| ‖τₗᵢ‖₁`` of every group, as shares that sum to 1."""
    merge = Merge(learned.recipe(session.study.space), session.sources)
    group_of = {s: i for i, selectors in enumerate(learned.groups) for s in selectors}
    found = [0.0] * len(learned.groups)
    for name, group in merge.moved.items():
        base, at = session.sources.base.read(name).float(), group_of[group.tensors]
        for expert, weight in zip(merge.experts.values(), learned.values[at], strict=True):
            found[at] += abs(weight) * float((expert.read(name) - base).abs().double().sum())
    total = sum(found)
    return [each / total for each in found] if total else [1 / len(found)] * len(found)


def allotted(shares: Sequence[float], budget: float, power: float) -> list[int]:
    """``mₗ = ⌊B Iₗ^κ / Σ I^κ⌋`` with B the budget times the number of groups.

    Raises:
        ConfigError: that is 0 for every group.
    """
    powers = [share**power for share in shares]
    scale = budget * len(shares) / sum(powers)
    counts = [math.floor(p * scale + 1e-9) for p in powers]
    if not any(counts):
        raise ConfigError(
            f"a budget of {budget:g} leaves no group a coefficient; give a larger one "
            f"(--set budget=1)"
        )
    return counts


def split(
    session: Session, start: Coefficients, counts: Sequence[int]
) -> tuple[tuple[tuple[str, ...], ...], list[bool]]:
    """Each group cut into as many as ``counts`` says, or as it can be; and which are learned."""
    merge = Merge(start.recipe(session.study.space), session.sources)
    places = layout(merge.sources.base.tensors)
    groups: list[tuple[str, ...]] = []
    free: list[bool] = []
    for selectors, count in zip(start.groups, counts, strict=True):
        held = [places[name] for name, group in merge.moved.items() if group.tensors in selectors]
        units = list(
            dict.fromkeys(
                f"{p.tower}/{'-' if p.block is None else p.block}/{p.module}"
                for p in sorted(held, key=lambda p: -1 if p.block is None else p.block)
            )
        )
        parts = min(count, len(units))
        if parts < 2:
            groups.append(selectors)
            free.append(count > 0)
            continue
        cuts = [round(i * len(units) / parts) for i in range(parts + 1)]
        groups += [tuple(units[a:b]) for a, b in pairwise(cuts)]
        free += [True] * parts
    return tuple(groups), free
