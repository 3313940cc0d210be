"""A search for merges: probes by signal teach a structured quadratic, whose best points are scored.

Most candidates are probes: a displacement of all genes, seen by the signal of one block of items.
Where slopes can be measured, a probe says how every objective changes with every gene (`slopes`).
Elsewhere probes come in pairs of opposite displacements that answer the same items (`surrogate`).
A displacement moves the genes of an expert together, or those of a place, or every gene by itself;
it starts from where the model expects the best. After every so many probes, the place where the
model, cautiously, expects the best for one weighting of the aims is asked for as a candidate to be
scored. What is proposed is a function of the seed and of what had been told up to the last version
of the data, so that the search resumes exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from evomerge.scoring.signals import soft
from evomerge.search.base import Evidence, Genome, Look, Measured, OptionValue
from evomerge.search.expected import REACH, Model, residual_of, spread
from evomerge.search.names import unit_of
from evomerge.search.rows import Row
from evomerge.search.slopes import SlopeModel, Slopes, fit_slopes
from evomerge.search.surrogate import Array, Observations, Surrogate, fit, levels
from evomerge.search.threads import loaded, one_thread

if TYPE_CHECKING:
    from evomerge.space import Gene

VERSION = 40  # observations between two fits, unless a score is asked or told
VERSION_BY_SLOPES = 5
MOST, MOST_BY_SLOPES = 600, 300  # observations in a fit: the latest
FEWEST = 12
FEWEST_BY_SLOPES = 5
FIRST = 40  # displacements that are mostly coarse
SHARES = ((4, 2, 2, 1, 1), (1, 1, 1, 1, 2))
"""Of the levels of `surrogate.levels` among displacements: of the first ones, and later."""
CAUTION = 0.5  # standard deviations of the model that a gain must outweigh
CAUTION_FIRST = 2.0  # with slopes, over the best reference, while full scores are fewer than genes
HOPE = 0.5  # standard deviations that full scores may differ from the model, for the better
WITHIN = 0.9  # of the model's reach, at most, that a step goes
STEPS, STRIDE = 32, 0.07
USUAL = {"probes": (20, 4), "startup": (60, 20), "step": (0.2, 0.1), "radius": (0.77, 1.5)}
"""Options that are not given: without slopes, and with them."""


@dataclass(frozen=True)
class _Data:
    """A version of what was seen: rows by candidate and whether by the metric; told scores.

    `awaited` are the places of candidates that were asked for to be scored, and are not yet.
    """

    rows: Mapping[tuple[int, bool], Row]
    told: Mapping[int, tuple[float, ...]]
    awaited: Mapping[int, Array]


class GuidedSearch:
    """See the module. Without `measured` it learns from told scores, and all candidates are scored.

    Places are genomes in natural units: a weight of one is one, other genes' ranges are one.
    """

    def __init__(
        self,
        seed: int,
        options: Mapping[str, OptionValue],
        dimension: int,
        objectives: int,
        genes: Sequence[Gene] = (),
        measured: Measured | None = None,
    ) -> None:
        self._seed, self._objectives, self._measured = seed, objectives, measured
        self._slopes = bool(wants_slopes(options) and measured and measured.slopes)
        self._probes = int(option(options, "probes", self._slopes))
        if not (measured and measured.blocks):
            self._probes = 0
        self._startup = int(option(options, "startup", self._slopes))
        near = WITHIN * REACH * dimension**0.5  # else what is seen there would not be learned from
        self._radius = min(option(options, "radius", self._slopes), near)
        self._step = option(options, "step", self._slopes)
        self._unit = np.array([unit_of(gene) for gene in genes]) if genes else np.ones(dimension)
        whole = levels(genes) if genes and options["structure"] else None
        self._levels = whole or (np.eye(dimension),) * len(SHARES[0])
        self._signal = bool(options["signal"])
        self._block: dict[tuple[str, int], int] = {}
        self._blocks = max(len(measured.blocks), 1) if measured else 1
        for number, block in enumerate(measured.blocks if measured else ()):
            self._block |= {(name, at): number for name, found in block.items() for at in found}
        self._rows: dict[tuple[int, bool], Row] = {}
        self._told: dict[int, tuple[float, ...]] = {}
        self._awaited: dict[int, Array] = {}
        self._first: int | None = None
        self._asked: set[int] = set()
        self._open: set[int] = set()  # probes that nothing was seen of yet
        self._seen = 0
        self._fitted: tuple[object, SlopeModel] | None = None
        self._freeze()

    def ask(self, candidates: Sequence[int]) -> list[Genome]:
        genomes: list[Genome] = []
        for candidate in candidates:
            if self._turn(candidate) == self._startup and self._open:
                break  # the first one to be scored waits for all probes before it: they are few
            genomes.append(self._propose(candidate))
            self._await(candidate, genomes[-1])
        return genomes

    def look(self, candidate: int) -> Look | None:
        turn = self._turn(candidate)
        if self._is_scored(turn):
            return None
        if self._slopes:
            return Look((self._probe(turn) % self._blocks,), True, True)
        return Look((self._probe(turn) // 2 % self._blocks,), self._signal)

    def observe(self, candidate: int, genome: Genome, evidence: Evidence) -> None:
        self._open.discard(candidate)
        by_metric = not evidence.signal and self._is_whole(candidate)
        row = self._row(candidate, genome, by_metric)
        for name, (where, values) in evidence.items.items():
            row.add(name, soft(values) if evidence.signal else np.array(values))
            for at in where:
                block = self._block.get((name, at))
                if block is not None:
                    row.blocks[block] = row.blocks.get(block, 0) + 1
        row.slopes |= {n: np.array(s) * self._unit for n, s in evidence.slopes.items()}
        if self._slopes and not evidence.signal:
            return  # the model learns of scores when they are told
        self._seen += 1
        if self._seen % (VERSION_BY_SLOPES if self._slopes else VERSION) == 0:
            self._freeze()

    def tell(self, candidate: int, genome: Genome, scores: tuple[float, ...]) -> None:
        self._told[candidate] = scores
        self._awaited.pop(candidate, None)
        if self._measured is None:
            row = self._row(candidate, genome, True)
            row.sums = {f"{i:03d}": (score, 1) for i, score in enumerate(scores)}
            row.blocks = {0: len(scores)}
        self._freeze()

    def fail(self, candidate: int) -> None:
        """Nothing to learn: what was seen of it is known."""
        self._open.discard(candidate)
        self._awaited.pop(candidate, None)

    def replay(self, candidate: int, genome: Genome) -> None:
        self._begin(candidate)
        self._await(candidate, genome)

    def _await(self, candidate: int, genome: Genome) -> None:
        if not self._is_scored(self._turn(candidate)):
            self._open.add(candidate)
        elif self._probes:
            self._awaited[candidate] = np.array(genome) / self._unit

    def _begin(self, candidate: int) -> int:
        """The candidate's turn; one that is to be scored is of all that was seen by now."""
        turn = self._turn(candidate)
        self._asked.add(candidate)
        if self._probes and self._is_scored(turn):
            self._freeze()
        return turn

    def _turn(self, candidate: int) -> int:
        """The how-manieth the candidate is among those asked for."""
        if self._first is None:
            self._first = candidate
        return candidate - self._first

    def _is_scored(self, turn: int) -> bool:
        """Whether that candidate is to be scored, not probed."""
        after = turn - self._startup
        return not self._probes or (after >= 0 and after % (self._probes + 1) == 0)

    def _probe(self, turn: int) -> int:
        """The how-manieth probe that turn is; without probes, the turn."""
        after = turn - self._startup
        return turn - (after // (self._probes + 1) + 1 if self._probes and after >= 0 else 0)

    def _is_whole(self, candidate: int) -> bool:
        """Whether what is seen of a candidate by the metric is of its score; else, of a probe."""
        return candidate not in self._asked or self._is_scored(self._turn(candidate))

    def _row(self, candidate: int, genome: Genome, by_metric: bool) -> Row:
        key = (candidate, by_metric)
        if key not in self._rows:
            self._rows[key] = Row(np.array(genome) / self._unit, by_metric)
        return self._rows[key]

    def _freeze(self) -> None:
        """Begins another version of the data, of which a model is made when it is needed."""
        rows = {key: row.copy() for key, row in self._rows.items()}
        self._data = _Data(rows, dict(self._told), dict(self._awaited))
        self._model: Model | None = None
        self._optima: dict[int, Array] = {}
        if self._slopes:
            self._seen = 0

    def _propose(self, candidate: int) -> Genome:
        turn = self._begin(candidate)
        if self._probes and self._is_scored(turn):
            place = self._best((turn - self._startup) // (self._probes + 1))
        elif self._slopes:
            rng = np.random.default_rng([self._seed, self._probe(turn)])
            best = self._best(int(rng.integers(self._objectives + 1)))
            place = best + self._displacement(rng, (1,) * len(self._levels))
        else:
            pair, second = divmod(self._probe(turn), 2)
            rng = np.random.default_rng([self._seed, pair])
            best = self._best(int(rng.integers(self._objectives + 1)))
            away = self._displacement(rng, SHARES[turn >= FIRST])
            if not self._probes and turn >= self._startup // 4:
                away = away * second  # every other one is where the best is expected
            place = best + (away if second else -away)
        return tuple(np.clip(place * self._unit, 0.0, 1.0).tolist())

    def _displacement(self, rng: np.random.Generator, shares: tuple[int, ...]) -> Array:
        """(d,), random in the groups of a random level, about `step` a gene."""
        odds = np.array(shares) / sum(shares)
        member = self._levels[rng.choice(len(odds), p=odds)]
        length = self._step * 2.0 ** rng.uniform(-1.0, 1.0)
        away = member @ rng.standard_normal(member.shape[1])
        return np.asarray(away * length / np.sqrt((away**2).mean()))

    def _best(self, weighting: int) -> Array:
        """Where the model expects the best for one weighting of the aims; the best so far while
        there is none: all aims alike, then each by itself, in turn."""
        which = weighting % (self._objectives + 1) if self._objectives > 1 else 0
        if which not in self._optima:
            with one_thread(loaded()):
                self._optima[which] = self._find(which)
        return self._optima[which]

    def _find(self, which: int) -> Array:
        if not self._data.told:
            return 0.5 / self._unit
        centre, scale = self._centre()
        if self._model is None:
            self._model = self._learn(centre, scale)
        if self._model is None:
            return centre
        weights = np.ones(self._objectives) / self._objectives
        if which:
            weights = np.eye(self._objectives)[which - 1]
        return self._ascend(self._model, weights / scale)

    def _centre(self) -> tuple[Array, Array]:
        """The place of the best told scores, all aims alike, and the range of each aim."""
        width = np.ptp(np.array(list(self._data.told.values())), axis=0)
        scale = np.where(width > 0, width, 1.0)
        return self._best_of(self._data.told, scale), scale

    def _best_of(self, told: Mapping[int, tuple[float, ...]], scale: Array) -> Array:
        """The place of the best of these scores, all aims alike."""
        worth = (np.array(list(told.values())) / scale).sum(axis=1)
        return self._data.rows[list(told)[int(np.argmax(worth))], True].place

    def _learn(self, centre: Array, scale: Array) -> Model | None:
        """The model of the version of the data; None if too little was seen near the centre."""
        names = tuple(dict.fromkeys(name for row in self._data.rows.values() for name in row.sums))
        rows = {
            key: row
            for key, row in self._data.rows.items()
            if np.sqrt(((row.place - centre) ** 2).mean()) < REACH
            and all(name in (row.slopes if self._slopes else row.sums) for name in names)
        }
        latest = list(rows)[-(MOST_BY_SLOPES if self._slopes else MOST) :]
        if len(latest) < (FEWEST_BY_SLOPES if self._slopes else FEWEST):
            return None
        surrogate = self._fit({key: rows[key] for key in latest}, centre, names)
        whole = {c: self._data.rows[c, True] for c in self._data.told}
        values = np.array([[row.value(name) for name in names] for row in whole.values()])
        at_centre = next(i for i, row in enumerate(whole.values()) if row.place is centre)
        model = Model(
            centre=centre,
            start=np.zeros_like(centre),
            known=np.zeros_like(centre),
            caution=CAUTION,
            names=names,
            level=values[at_centre],
            width=np.maximum(0.2 * values.std(axis=0), 1e-9),
            scale=scale,
            surrogate=surrogate,
        )
        if self._slopes:
            model = replace(model, residual=residual_of(model, whole, self._data.awaited))
        references = {c: told for c, told in self._data.told.items() if c < (self._first or 0)}
        if self._slopes and references and model.residual is None:
            known = self._best_of(references, scale) - centre
            model = replace(model, known=known, caution=CAUTION_FIRST)
        return replace(model, start=self._start(model, whole))

    def _fit(
        self, seen: Mapping[tuple[int, bool], Row], centre: Array, names: Sequence[str]
    ) -> Surrogate | SlopeModel:
        rows = list(seen.values())
        places = np.array([row.place - centre for row in rows])
        blocks = np.zeros((len(rows), self._blocks))
        for i, row in enumerate(rows):
            blocks[i, list(row.blocks)] = list(row.blocks.values())
        blocks /= np.maximum(blocks.sum(axis=1, keepdims=True), 1.0)
        if self._slopes:
            fitted_to = (tuple(seen), tuple(names), centre.tobytes())  # slopes never change
            if self._fitted is None or self._fitted[0] != fitted_to:
                found = np.array([[row.slopes[name] for name in names] for row in rows])
                self._fitted = (fitted_to, fit_slopes(Slopes(places, blocks, found)))
            return self._fitted[1]
        observations = Observations(
            places=places,
            blocks=blocks,
            values=np.array([[row.value(name) for name in names] for row in rows]),
            items=np.array([max(1.0, sum(row.blocks.values())) for row in rows]),
            by_metric=np.array([row.by_metric for row in rows]),
        )
        return fit(self._levels, observations)

    def _start(self, model: Model, whole: Mapping[int, Row]) -> Array:
        """The displacement of the candidate that is best by its scores and by the model.

        Scores alone would favour whoever was lucky with the items. One whose score is awaited goes
        by the model, cautiously, so that many workers need not wait.
        """
        best, most = model.centre * 0.0, -np.inf
        for candidate, row in whole.items():
            away = row.place - model.centre
            if np.sqrt((away**2).mean()) < REACH:
                expected = self._aims(model, model.values(away)[0])
                told = np.array(self._data.told[candidate])
                total = float(((told + expected) / model.scale).sum())
                if total > most:
                    best, most = away, total
        for place in self._data.awaited.values() if self._slopes else ():
            away = place - model.centre
            values = model.values(away)[0]
            worth = self._worth(model, values, 1 / model.scale)
            deviation, _ = model.surrogate.deviation(away)
            doubt = CAUTION * deviation * spread(worth, model.surrogate.units)
            total = 2 * (float((self._aims(model, values) / model.scale).sum()) - doubt)
            if total > most:
                best, most = away, total
        return np.asarray(best)

    def _aims(self, model: Model, values: Array) -> Array:
        """(m,) of values (T,)."""
        if self._measured is None:
            return values
        means = zip(model.names, values.tolist(), strict=True)
        return np.array(
            self._measured.fitness({name: self._measured.value(name, mean) for name, mean in means})
        )

    def _worth(self, model: Model, values: Array, weights: Array) -> Array:
        """(T,), what the weighted aims change with each value, over a few of its deviations."""
        changes = [
            weights @ (self._aims(model, values + step) - self._aims(model, values - step))
            for step in np.diag(model.width)
        ]
        return np.array(changes) / (2 * model.width)

    def _ascend(self, model: Model, weights: Array) -> Array:
        """Where in the ball around the start the weighted aims, cautiously expected, are best."""
        radius = self._radius
        low, high = -model.centre, 1.0 / self._unit - model.centre
        away, momentum = model.start, np.zeros_like(model.start)
        best, most = away, -np.inf
        worth = np.zeros(len(model.names))
        for step in range(STEPS):
            values, slopes = model.values(away)
            if step % 2 == 0:
                worth = self._worth(model, values, weights)
            total = float(weights @ self._aims(model, values))
            uphill = slopes @ worth
            deviation, slope = model.surrogate.deviation(away, model.known)
            share = model.caution * spread(worth, model.surrogate.units)
            total, uphill = total - share * deviation, uphill - share * slope
            if model.residual is not None:
                deviation, slope = model.residual.deviation(away)
                share = HOPE * spread(worth, model.residual.units)
                total, uphill = total + share * deviation, uphill + share * slope
            if total > most:
                best, most = away, total
            momentum = 0.8 * momentum + uphill / (np.linalg.norm(uphill) + 1e-12)
            moved = away + STRIDE * radius * (1 - step / STEPS) * momentum - model.start
            moved = moved * min(1.0, radius / (float(np.linalg.norm(moved)) + 1e-12))
            away = np.clip(model.start + moved, low, high)
        return np.asarray(model.centre + best)


def wants_slopes(options: Mapping[str, OptionValue]) -> bool:
    """Whether probes are asked for slopes where a model gives any."""
    return bool(options["slopes"] and options["signal"] and options["probes"] != 0)


def option(options: Mapping[str, OptionValue], name: str, slopes: bool) -> float:
    """An option's value, or the usual one."""
    given = options[name]
    return USUAL[name][slopes] if given is None else float(given)
