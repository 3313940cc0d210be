"""A small merge to search for: an analytic model of items, and an engine that asks them.

Three experts over three places; each objective wants its own expert, most at one place, and is
disturbed by the others. An item is solved where its margin is positive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evomerge.search.base import Evidence, Genome, Guided, Look, Measured
from evomerge.search.testing import Call, apply
from evomerge.space import Gene

NAMES = ("adds", "names", "sorts")
PLACES = ("language/0/attention", "language/0/mlp", "language/1/mlp")
GENES = [Gene(f"weight[{e}] {p}", 0.0, 1.5, log=False) for e in NAMES for p in PLACES]
D, ITEMS, BLOCKS = len(GENES), 40, 20
RUNGS = ((0, 1), (2, 3, 4), tuple(range(5, 10)), tuple(range(10, 20)))
SURPRISE, SIZE = "surprise", "size"
_CARES = np.array([[1.0, 0.2, 0.1], [0.1, 1.0, 0.2], [0.2, 0.1, 1.0]])  # objectives, places
_HARD = {name: np.random.default_rng(i).normal(0, 0.7, ITEMS) for i, name in enumerate(NAMES)}
_HARD_AGAIN = np.random.default_rng(9).normal(0, 0.7, 1000)

REFERENCES: tuple[Genome, ...] = (
    (0.0,) * D,
    (0.3 / 1.5,) * D,
    (0.5 / 1.5,) * D,
    *(tuple(float(e == i // 3) / 1.5 for i in range(D)) for e in range(3)),
)


@dataclass(frozen=True)
class Toy:
    """Which of the objectives have a signal, and which are there besides.

    ``slopes``: all have signals, and their slopes are shown where they are asked for.
    ``surprise``: the exponential of a mean, minimised, by the metric only. ``size``: the mean
    weight, minimised, a look at the weights.
    """

    signals: frozenset[str] = frozenset(NAMES)
    surprise: bool = False
    size: bool = False
    slopes: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives that have items."""
        return (*NAMES, SURPRISE) if self.surprise else NAMES

    @property
    def measured(self) -> Measured:
        blocks = tuple({name: (2 * b, 2 * b + 1) for name in self.names} for b in range(BLOCKS))
        return Measured(blocks, self.signals, self.fitness, self.value, self.slopes)

    @property
    def whole(self) -> int:
        """Items of a full evaluation."""
        return len(self.names) * ITEMS

    def value(self, name: str, mean: float) -> float:
        return float(np.exp(mean)) if name == SURPRISE else mean

    def fitness(self, values: Mapping[str, float]) -> tuple[float, ...]:
        assert set(values) == {*self.names, *([SIZE] if self.size else [])}
        return tuple(-v if name in (SURPRISE, SIZE) else v for name, v in sorted(values.items()))

    def scores(self, genome: Genome) -> tuple[float, ...]:
        """What is told of a full evaluation."""
        values = {n: self.value(n, float(self.items(n, genome, False).mean())) for n in self.names}
        return self.fitness(values | ({SIZE: float(np.mean(genome))} if self.size else {}))

    def items(self, name: str, genome: Genome, signal: bool) -> np.ndarray:
        """(ITEMS,), of the metric or the signal."""
        if name == SURPRISE:
            hard = np.linspace(0.5, 1.5, ITEMS)
            return hard + 0.6 * float(((np.array(genome) * 1.5 - 1.0) ** 2).mean())
        margins = 4.0 * (skill(name, genome) - _HARD[name])
        if signal:
            return np.asarray(-np.logaddexp(0.0, -margins))
        return (margins > 0).astype(np.float64)

    def evidence(self, genome: Genome, look: Look) -> list[Evidence]:
        """What an engine shows of these blocks: by signal where there is one and it is wanted."""
        where = tuple(at for block in look.blocks for at in (2 * block, 2 * block + 1))
        kinds: dict[bool, dict[str, tuple[tuple[int, ...], tuple[float, ...]]]]
        kinds = {True: {}, False: {SIZE: ((0,), (float(np.mean(genome)),))} if self.size else {}}
        for name in self.names:
            by_signal = look.signal and name in self.signals
            values = self.items(name, genome, by_signal)[list(where)]
            kinds[by_signal][name] = (where, tuple(values.tolist()))
        if look.slopes:
            assert self.slopes
            assert set(kinds[True]) == set(self.names)
            return [Evidence(True, kinds[True], slopes(genome, where))]
        return [Evidence(signal, items) for signal, items in kinds.items() if items]

    def cost(self, look: Look) -> int:
        """Items of a look; those with slopes count three times."""
        return len(look.blocks) * self.whole // BLOCKS * (3 if look.slopes else 1)


def skill(name: str, genome: Genome) -> float:
    weights = np.array(genome).reshape(3, 3) * 1.5
    own = NAMES.index(name)
    gain = float(_CARES[own] @ (2.0 * weights[own] - weights[own] ** 2))
    disturbed = float(((np.delete(weights, own, axis=0) ** 2) @ _CARES[own]).sum())
    return 1.2 * gain - 0.8 * disturbed - 0.8


def skill_slope(name: str, genome: Genome) -> np.ndarray:
    """(D,), the derivatives of `skill` by the genes."""
    weights, own = np.array(genome).reshape(3, 3) * 1.5, NAMES.index(name)
    slope = -1.6 * weights * _CARES[own]
    slope[own] = 2.4 * (1.0 - weights[own]) * _CARES[own]
    return np.asarray(1.5 * slope.ravel())


def slopes(genome: Genome, where: Sequence[int]) -> dict[str, tuple[float, ...]]:
    """By objective, the derivatives of the mean soft score of these items by the genes."""
    found = {}
    for name in NAMES:
        right = 1 / (1 + np.exp(-4.0 * (skill(name, genome) - _HARD[name][list(where)])))
        by_skill = (4.0 * np.sqrt(right) * (1 - right) / 2).mean()
        found[name] = tuple((by_skill * skill_slope(name, genome)).tolist())
    return found


def true_mean(genome: Genome) -> float:
    """Mean accuracy over the three objectives on a thousand other items each."""
    return float(np.mean([(skill(name, genome) > _HARD_AGAIN).mean() for name in NAMES]))


@dataclass
class Run:
    """What an engine did: its calls, what looks it was given, and who was scored."""

    calls: list[Call] = field(default_factory=list)
    looks: dict[int, Look | None] = field(default_factory=dict)
    scored: list[Call] = field(default_factory=list)
    cost: int = 0

    @property
    def asked(self) -> list[Call]:
        return [call for call in self.calls if call.kind == "ask"]

    def best(self) -> Genome:
        """Of those that the search proposed, who has the best mean as it was told."""
        found = [c for c in self.scored if c.candidate >= len(REFERENCES)]
        return max(found, key=lambda call: float(np.mean(call.scores))).genome


def repeat(search: Guided, call: Call) -> None:
    """A call of any kind; an ask as a replay."""
    if call.kind == "observe":
        assert call.evidence is not None
        search.observe(call.candidate, call.genome, call.evidence)
    else:
        apply(search, call)


def drive(
    search: Guided,
    toy: Toy,
    evaluations: float,
    references: Sequence[Genome] = REFERENCES,
    waiting: int = 1,
    trouble: float = 0.0,
) -> Run:
    """References first; then candidates until they have cost so many full evaluations.

    With ``waiting`` above 1, a random one of those that wait is measured next, part by part. Of
    those to be scored, ``trouble`` is the share that is raced in rungs; a third of them is dropped
    underway. A tenth of that share of all cannot be built.
    """
    run, dice = Run(), np.random.default_rng(1)

    def say(call: Call) -> None:
        run.calls.append(call)
        repeat(search, call)

    def show(candidate: int, genome: Genome, look: Look) -> None:
        for evidence in toy.evidence(genome, look):
            say(Call("observe", candidate, genome, evidence=evidence))

    def score(candidate: int, genome: Genome, parts: Sequence[tuple[int, ...]]) -> None:
        for blocks in parts:
            show(candidate, genome, Look(blocks, signal=False))
        told = Call("tell", candidate, genome, toy.scores(genome))
        say(told)
        run.scored.append(told)

    for candidate, genome in enumerate(references):
        score(candidate, genome, [tuple(range(BLOCKS))])
    open_ones: list[tuple[int, Genome, list[tuple[int, ...]]]] = []
    new = len(references)
    while run.cost < evaluations * toy.whole:
        room = range(new, new + waiting - len(open_ones))
        asked = search.ask(room)
        for candidate, genome in zip(room, asked, strict=False):
            run.calls.append(Call("ask", candidate, genome))
            run.looks[candidate] = search.look(candidate)
            raced = dice.random() < trouble
            open_ones.append((candidate, genome, list(RUNGS if raced else [sum(RUNGS, ())])))
        new += len(asked)
        candidate, genome, parts = open_ones.pop(int(dice.integers(len(open_ones))))
        look = run.looks[candidate]
        if dice.random() < trouble / 10:
            say(Call("fail", candidate))
        elif look is not None:
            show(candidate, genome, look)
            run.cost += toy.cost(look)
        elif len(parts) == 1:
            score(candidate, genome, parts)
            run.cost += len(parts[0]) * toy.whole // BLOCKS
        else:
            show(candidate, genome, Look(parts[0], signal=False))
            run.cost += len(parts[0]) * toy.whole // BLOCKS
            if len(parts) < len(RUNGS) and dice.random() < 0.2:
                say(Call("fail", candidate))
            else:
                open_ones.append((candidate, genome, parts[1:]))
    return run
