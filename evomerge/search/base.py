"""The search seam: what searches are told and asked.

A search sees only points of the unit box and scores to be maximised. It knows nothing of merging,
and what it proposes depends on its settings and on the calls it received, in order, alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from evomerge.errors import IntegrityError

Genome = tuple[float, ...]
"""A point of the unit box [0, 1]^d, float64."""

OptionValue = int | float | bool | None


class Search(Protocol):
    """Proposes genomes and learns from scores; one process, one thread.

    A fresh search with the same settings that is fed the recorded calls in their order, each asked
    genome by `replay` instead of `ask`, then proposes bit for bit what the uninterrupted one would.
    """

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        """One genome for each of the new candidate ids (0 or greater), in order.

        May return fewer than asked for, then only the first ids are used; it returns at least one
        when no asked candidate is still waiting for its tell or fail.
        """

    def tell(self, candidate: int, genome: Genome, scores: tuple[float, ...]) -> None:
        """Reports finite scores, to be maximised, in the order of the objectives.

        A candidate that was never asked for (a reference point) may be told too; told before the
        first ask, references also decide where the search starts. Told later, they are learned
        from where the algorithm allows it.
        """

    def fail(self, candidate: int) -> None:
        """Reports that a candidate has no scores, and will not get any.

        For a reference, which was never asked for, nothing happens.
        """

    def replay(self, candidate: int, genome: Genome) -> None:
        """Repeats a recorded ask of one candidate, cheaply.

        Raises IntegrityError where the search can see that it would have proposed another genome.
        """


@dataclass(frozen=True)
class Look:
    """What a candidate is first asked: blocks of items by number, by the metric or the signal.

    With ``slopes``, how the signal changes with every gene is asked too; see `Evidence`.
    """

    blocks: tuple[int, ...]
    signal: bool
    slopes: bool = False


@dataclass(frozen=True)
class Evidence:
    """Values of some items of one candidate.

    ``items`` has, by objective, positions among the objective's search items and the value at each:
    the metric's score, or with ``signal`` the auxiliary signal. Not signed by direction. An
    objective that looks at the weights alone (sparsity) has one value, at position 0.

    ``slopes`` has, by objective, the derivatives by each gene of the mean of the soft scores
    (`evomerge.scoring.signals`) of these items; empty where they were not asked for.
    """

    signal: bool
    items: Mapping[str, tuple[tuple[int, ...], tuple[float, ...]]]
    slopes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What a guided search knows of how candidates are measured.

    ``blocks`` are the parts in which items come, stratified over the objectives, the same for all
    candidates: by objective the positions of its items; every item is in exactly one of them.
    ``fitness`` makes the scores of `Search.tell` of the values by objective; ``value`` makes that
    value of the mean over an objective's items. ``signals`` are the objectives whose items have a
    signal. ``slopes``: looks by signal may ask for slopes, of all objectives.
    """

    blocks: tuple[Mapping[str, tuple[int, ...]], ...]
    signals: frozenset[str]
    fitness: Callable[[Mapping[str, float]], tuple[float, ...]]
    value: Callable[[str, float], float] = lambda name, mean: mean
    slopes: bool = False


class Guided(Search, Protocol):
    """A search that decides how much of a candidate is looked at and learns from single items.

    `observe` comes with everything that was seen of a candidate, in the order in which it came,
    references that lie in the space included, before the `tell` that a full score brings.
    """

    def look(self, candidate: int) -> Look | None:
        """What to ask of a candidate that was just asked for; None: its score, as by any search.

        A candidate with a look is a probe: it gets no score and is never told or failed, but by
        `fail` if it cannot be built. It is over when its look is observed. Where no objective has
        a signal, it is asked by the metric.

        Asked once, right after the ask, never when that is replayed: then the ledger knows it.
        """

    def observe(self, candidate: int, genome: Genome, evidence: Evidence) -> None:
        """Reports items of a candidate, each once by the metric.

        A look by signal is reported twice, by signal and by metric, where some objectives have no
        signal. Of a candidate in a race, rungs are reported as they come, then `tell`, or `fail`
        if it is dropped.
        """


def check_replay(candidate: int, recorded: Genome, proposed: Genome) -> None:
    """Raises IntegrityError unless asking again gave the recorded genome (empty: gave none)."""
    if proposed == recorded:
        return
    pairs = zip(recorded, proposed, strict=False)
    gene = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    difference = (
        f"{len(recorded)} genes were recorded, but asking again gives {len(proposed)}"
        if gene is None
        else f"gene {gene} was recorded as {recorded[gene]!r}, but asking again gives "
        f"{proposed[gene]!r}"
    )
    raise IntegrityError(
        f"candidate {candidate}: {difference}; resume with the seed, settings, library versions "
        "and kind of machine of the recorded run, or start a new one"
    )
