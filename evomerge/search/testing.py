"""What every Search must do, as plain functions, and fakes to test what drives a search.

Each check takes `make`, which gives a fresh search for a seed, over `dimension` genes with
`objectives` scores; it raises AssertionError with the broken promise. To test a new search:

    check_replay_is_exact(lambda seed: MySearch(seed, dimension=3), dimension=3, objectives=2)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.errors import IntegrityError
from evomerge.search.base import Evidence, Genome, Guided, Look, Measured, Search

Make = Callable[[int], Search]


@dataclass(frozen=True)
class Call:
    """One recorded call: `kind` is ask, tell, fail or observe; scores are only of a tell."""

    kind: str
    candidate: int
    genome: Genome = ()
    scores: tuple[float, ...] = ()
    evidence: Evidence | None = None


class FakeSearch:
    """Proposes the given genomes in order, then nothing; keeps every call in `calls`."""

    def __init__(self, genomes: Sequence[Genome]) -> None:
        self._genomes = list(genomes)
        self._asked = 0
        self.calls: list[Call] = []

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        genomes = self._genomes[self._asked : self._asked + len(candidates)]
        for candidate, genome in zip(candidates, genomes, strict=False):
            self.replay(candidate, genome)
        return genomes

    def tell(self, candidate: int, genome: Genome, scores: tuple[float, ...]) -> None:
        self.calls.append(Call("tell", candidate, genome, scores))

    def fail(self, candidate: int) -> None:
        self.calls.append(Call("fail", candidate))

    def replay(self, candidate: int, genome: Genome) -> None:
        if genome != self._genomes[self._asked]:
            raise IntegrityError(f"candidate {candidate}: the fake would propose another genome")
        self._asked += 1
        self.calls.append(Call("ask", candidate, genome))


class EchoSearch:
    """Every proposal is a hash of all calls before it, so nothing can be told otherwise unnoticed.

    Keeps every call in `calls`.
    """

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._heard = hashlib.sha256()
        self.calls: list[Call] = []

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        genomes = []
        for candidate in candidates:
            genomes.append(self._propose())
            self._hear(Call("ask", candidate, genomes[-1]))
        return genomes

    def tell(self, candidate: int, genome: Genome, scores: tuple[float, ...]) -> None:
        self._hear(Call("tell", candidate, genome, scores))

    def fail(self, candidate: int) -> None:
        self._hear(Call("fail", candidate))

    def replay(self, candidate: int, genome: Genome) -> None:
        if genome != self._propose():
            raise IntegrityError(f"candidate {candidate}: another genome would be proposed")
        self._hear(Call("ask", candidate, genome))

    def _propose(self) -> Genome:
        random = np.random.default_rng(list(self._heard.digest()))
        return tuple(random.random(self._dimension).tolist())

    def _hear(self, call: Call) -> None:
        self.calls.append(call)
        self._heard.update(repr(call).encode())


class EchoGuided(EchoSearch):
    """Also takes ``looks`` in turn: at the first candidate the first, and so on, again and again.

    A look of None asks for the score.
    """

    def __init__(self, dimension: int, looks: Sequence[Look | None]) -> None:
        super().__init__(dimension)
        self._looks = looks

    def look(self, candidate: int) -> Look | None:
        return self._looks[candidate % len(self._looks)]

    def observe(self, candidate: int, genome: Genome, evidence: Evidence) -> None:
        self._hear(Call("observe", candidate, genome, evidence=evidence))


class Shown:
    """A guided search as a plain one: who is told of a candidate shows it what its look asks.

    Values, of items that are all alike, are those of `scores_of`, as signals and as metrics.
    """

    def __init__(self, search: Guided, objectives: int) -> None:
        self._search, self._objectives = search, objectives
        self._asked: set[int] = set()

    @staticmethod
    def measured(objectives: int, blocks: int = 4) -> Measured:
        """What such a search is to know: one item of each objective a block, with slopes."""
        names = [f"objective {k}" for k in range(objectives)]
        return Measured(
            blocks=tuple(dict.fromkeys(names, (block,)) for block in range(blocks)),
            signals=frozenset(names),
            fitness=lambda values: tuple(values[name] for name in names),
            slopes=True,
        )

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        genomes = self._search.ask(candidates)
        self._asked.update(candidates[: len(genomes)])
        return genomes

    def tell(self, candidate: int, genome: Genome, scores: tuple[float, ...]) -> None:
        look = self._search.look(candidate) if candidate in self._asked else None
        self._search.observe(candidate, genome, self._evidence(genome, look))
        if look is None:
            self._search.tell(candidate, genome, scores)

    def fail(self, candidate: int) -> None:
        self._search.fail(candidate)

    def replay(self, candidate: int, genome: Genome) -> None:
        self._search.replay(candidate, genome)
        self._asked.add(candidate)

    def _evidence(self, genome: Genome, look: Look | None) -> Evidence:
        known = self.measured(self._objectives)
        where = look.blocks if look else tuple(range(len(known.blocks)))
        items, slopes = {}, {}
        for k, (name, score) in enumerate(
            zip(known.blocks[0], scores_of(genome, self._objectives), strict=True)
        ):
            items[name] = (where, (score,) * len(where))
            # of a soft score, exp(score / 2)
            away = np.asarray(genome) - 0.4 - 0.05 * k
            slopes[name] = tuple((-away * np.exp(score / 2)).tolist())
        return Evidence(bool(look and look.signal), items, slopes if look and look.slopes else {})


def scores_of(genome: Genome, objectives: int) -> tuple[float, ...]:
    """Smooth scores in (−d, 0]: minus the squared distance to 0.4 (and 0.45, 0.5, ...)."""
    x = np.asarray(genome)
    return tuple(-float(np.sum((x - 0.4 - 0.05 * k) ** 2)) for k in range(objectives))


def record(search: Search, dimension: int, objectives: int, asks: int) -> list[Call]:
    """Drives a search as an asynchronous engine would, and returns the calls it made.

    Three references first; up to three candidates wait at once; the newest waiting one is told
    first, so tells come out of order; every fifth candidate fails.
    """
    calls = list(_references(dimension, objectives))
    for call in calls:
        apply(search, call)
    waiting: list[Call] = []
    for first in range(10, 10 + asks, 2):
        room = min(2, 3 - len(waiting))
        candidates = list(range(first, first + room))
        asked = [
            Call("ask", candidate, genome)
            for candidate, genome in zip(candidates, search.ask(candidates), strict=False)
        ]
        calls += asked
        waiting += asked
        for _ in range(min(2, len(waiting))):
            done = waiting.pop()
            call = _outcome(done, objectives)
            apply(search, call)
            calls.append(call)
            if len(waiting) < 2 and len(calls) % 3:
                break
    return calls


def apply(search: Search, call: Call) -> None:
    """Repeats one call; an ask as a replay."""
    match call.kind:
        case "ask":
            search.replay(call.candidate, call.genome)
        case "tell":
            search.tell(call.candidate, call.genome, call.scores)
        case "fail":
            search.fail(call.candidate)


def check_proposals_lie_in_the_box(
    make: Make, dimension: int, objectives: int, asks: int = 20
) -> None:
    """Right length, plain floats, inside [0, 1]."""
    asked = _asked(record(make(1), dimension, objectives, asks))
    assert len(asked) >= asks // 2, f"{len(asked)} proposals of {asks} asks"
    for genome in asked:
        assert len(genome) == dimension
        assert all(type(gene) is float and 0.0 <= gene <= 1.0 for gene in genome), genome


def check_seed_decides(make: Make, dimension: int, objectives: int, asks: int = 20) -> None:
    """The same seed proposes the same, another seed something else."""
    first = record(make(1), dimension, objectives, asks)
    assert record(make(1), dimension, objectives, asks) == first
    assert _asked(record(make(2), dimension, objectives, asks)) != _asked(first)


def check_replay_is_exact(
    make: Make, dimension: int, objectives: int, asks: int = 20, cuts: Sequence[float] = (0.1, 0.5)
) -> None:
    """Cut anywhere (as parts of the record), a resumed search goes on as the uninterrupted one."""
    calls = record(make(1), dimension, objectives, asks)
    for cut in [int(len(calls) * part) for part in cuts]:
        resumed = make(1)
        for call in calls[:cut]:
            apply(resumed, call)
        for call in calls[cut:]:
            if call.kind == "ask":
                genomes = resumed.ask([call.candidate])
                assert genomes == [call.genome], f"cut {cut}, candidate {call.candidate}"
            else:
                apply(resumed, call)


def check_replay_notices_another_run(make: Make, dimension: int, objectives: int) -> None:
    """Where asking again is the way to replay, another seed's record is refused."""
    calls = record(make(1), dimension, objectives, 4)
    search = make(2)
    try:
        for call in calls:
            apply(search, call)
    except IntegrityError:
        return
    raise AssertionError("a record of seed 1 was replayed by a search of seed 2")


def check_failures_never_block(
    make: Make, dimension: int, objectives: int, failures: int = 40
) -> None:
    """However many candidates fail, the next ask proposes, and a success is still learned from."""
    search = make(1)
    search.fail(900)  # a reference
    for candidate in range(failures):
        assert len(search.ask([candidate])) == 1, f"candidate {candidate}"
        search.fail(candidate)
    (genome,) = search.ask([failures])
    search.tell(failures, genome, scores_of(genome, objectives))
    assert len(search.ask([failures + 1])) == 1


def check_batches_equal_single_asks(make: Make, dimension: int, objectives: int) -> None:
    """Asking for several at once proposes what asking one by one does; none for none."""
    together, alone = make(1), make(1)
    genomes = together.ask([0, 1, 2])
    assert 1 <= len(genomes) <= 3
    assert genomes == [alone.ask([candidate])[0] for candidate in range(len(genomes))]
    assert together.ask([]) == []


def check_unasked_tells_are_welcome(make: Make, dimension: int, objectives: int) -> None:
    """A reference told in the middle of a search is taken, and the search goes on."""
    search = make(1)
    record(search, dimension, objectives, 8)
    genome = (0.4,) * dimension
    search.tell(900, genome, scores_of(genome, objectives))
    assert len(search.ask([901])) == 1


def check_global_generators_are_untouched(
    make: Make, dimension: int, objectives: int, asks: int = 20
) -> None:
    """Global generators neither decide what is proposed nor are advanced by it."""
    import random

    import torch

    proposals = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
        proposals.append(record(make(1), dimension, objectives, asks))
        after = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
        assert before == after, "a global generator was advanced"
    assert proposals[0] == proposals[1], "a global generator decided a proposal"


def check_it_learns(
    make: Make, dimension: int, objectives: int, asks: int, seeds: Sequence[int] = (1, 2, 3)
) -> None:
    """The best of the last quarter beats the best of the first one, in the mean over seeds."""
    gains = []
    for seed in seeds:
        search = make(seed)
        totals = []
        for candidate in range(asks):
            (genome,) = search.ask([candidate])
            scores = scores_of(genome, objectives)
            search.tell(candidate, genome, scores)
            totals.append(sum(scores))
        quarter = asks // 4
        gains.append(max(totals[-quarter:]) - max(totals[:quarter]))
    assert np.mean(gains) > 0, f"gains by seed: {gains}"


def _references(dimension: int, objectives: int) -> Iterator[Call]:
    for candidate, gene in enumerate((0.0, 0.3, 1.0)):
        genome = (gene,) * dimension
        yield Call("tell", candidate, genome, scores_of(genome, objectives))


def _outcome(asked: Call, objectives: int) -> Call:
    if asked.candidate % 5 == 0:
        return Call("fail", asked.candidate)
    scores = scores_of(asked.genome, objectives)
    return Call("tell", asked.candidate, asked.genome, scores)


def _asked(calls: Sequence[Call]) -> list[Genome]:
    return [call.genome for call in calls if call.kind == "ask"]
