"""Racing's decision on analytic races: the rate of false drops and the items saved.

    python -m benchmarks.search.races [--races 1000] [--seed 20]

A race is a history of scored candidates, their front and one new candidate on 5 tasks of 200 items.
A candidate is a point g of 10 genes; it answers item i of task t right if

    peak_t - |g - o_t|^2 / 10 + difficulty_i + slope_i g + noise > 0

so that neighbours answer most items alike. Histories close in on the middle of the optima o_t, as
searches do. The new candidate is, in turn, of one of the classes

    far       drawn as at the start of a search
    middling  drawn as in the middle of one
    late      drawn as at its end
    near      a step from a member of the front
    better    a step from a member towards the middle of the optima
    edge      one of these whose answers were turned at random until it just is not dominated

and is asked for 10, 25 and 50 % of the items, in random order. It is dropped falsely if it was
dropped and no member of the front dominates it on all items. The rate is that among candidates that
no member dominates, so it is not thinned by those that cannot be dropped falsely; its interval is
Clopper and Pearson's of 95 %. Saved is the share of all items that was not asked.

Results go to benchmarks/search/results/races.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from evomerge.front import non_dominated
from evomerge.scoring.racing import Aim, aims_of, verdict

RESULT = Path(__file__).parent / "results" / "races.json"
TASKS = tuple("abcde")
ITEMS = 200
GENES = 10
SHARES = (0.1, 0.25, 0.5)
LEVELS = (0.01, 0.05, 0.1)
CLASSES = ("far", "middling", "late", "near", "better", "edge")
AIMS = {
    "mean and min": ("mean", "min"),
    "mean": ("mean",),
    "min": ("min",),
    "one task": ("a",),
    "all tasks": TASKS,
}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Race:
    """Answers (tasks, items), 0 or 1, of the candidate, the front and who is behind it."""

    kind: str
    candidate: Floats
    front: Floats
    others: Floats
    order: NDArray[np.intp]
    alive: bool


@dataclass(frozen=True)
class World:
    """Items and optima of one study."""

    peaks: Floats
    optima: Floats
    difficulty: Floats
    slopes: Floats

    def answers(self, genes: Floats, rng: np.random.Generator) -> Floats:
        """Of candidates (c, genes): (c, tasks, items)."""
        apart = ((genes[:, None] - self.optima) ** 2).sum(axis=2) / GENES
        margin = (self.peaks - apart)[:, :, None] + self.difficulty
        margin = margin + np.einsum("cg,tig->cti", genes, self.slopes)
        return np.asarray(margin + 0.25 * rng.normal(size=margin.shape) > 0, dtype=np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--races", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    data: dict[str, Any] = {}
    for number, (label, names) in enumerate(AIMS.items()):
        aims = aims_of(names, [1.0] * len(names), dict.fromkeys(TASKS, "maximise"))
        seeds = np.random.SeedSequence([options.seed, number]).spawn(options.races)
        races = [
            race(np.random.default_rng(seed), CLASSES[i % len(CLASSES)], aims)
            for i, seed in enumerate(seeds)
        ]
        data[label] = alike(races)
        for level in LEVELS:
            rows.append({"aims": label, "level": level, **measure(races, aims, level)})
            show(rows[-1])
    RESULT.parent.mkdir(exist_ok=True)
    result = {"races": options.races, "seed": options.seed, "answers": data, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def race(rng: np.random.Generator, kind: str, aims: Sequence[Aim]) -> Race:
    """A world, 8 to 80 candidates of a history and a new one of the class."""
    optima = rng.normal(size=(len(TASKS), GENES)) * 0.7
    world = World(
        rng.uniform(1.0, 2.8, len(TASKS)),
        optima,
        1.2 * rng.normal(size=(len(TASKS), ITEMS)),
        0.35 * rng.normal(size=(len(TASKS), ITEMS, GENES)) / np.sqrt(GENES),
    )
    middle, size = optima.mean(axis=0), int(rng.integers(8, 81))
    width = np.linspace(0.9, 0.2, size)[:, None]
    genes = middle + width * rng.normal(size=(size, GENES))
    scored = world.answers(genes, rng)
    on_front = non_dominated(points(scored, aims))
    member = genes[rng.choice(np.flatnonzero(on_front))]
    start = rng.choice(CLASSES[:-1]) if kind == "edge" else kind
    step = rng.normal(size=GENES)
    new = {
        "far": middle + 0.9 * step,
        "middling": middle + 0.5 * step,
        "late": middle + 0.2 * step,
        "near": member + 0.1 * step,
        "better": member + 0.4 * (middle - member) + 0.05 * step,
    }[start]
    candidate = world.answers(new[None], rng)[0]
    front = scored[on_front]
    if kind == "edge":
        candidate = edge(rng, candidate, points(front, aims), aims)
    order = np.stack([rng.permutation(ITEMS) for _ in TASKS])
    alive = not dominated(points(candidate[None], aims)[0], points(front, aims))
    return Race(kind, candidate, front, scored[~on_front], order, alive)


def points(answers: Floats, aims: Sequence[Aim]) -> Floats:
    """(c, tasks, items) -> (c, aims)"""
    values = answers.mean(axis=2)
    return np.array([[aim.of(dict(zip(TASKS, v, strict=True))) for aim in aims] for v in values])


def dominated(point: Floats, front: Floats) -> bool:
    return bool(((front >= point).all(axis=1) & (front > point).any(axis=1)).any())


def edge(rng: np.random.Generator, candidate: Floats, front: Floats, aims: Sequence[Aim]) -> Floats:
    """Turns wrong answers right, or right ones wrong, one by one, to the last that is needed."""
    candidate = candidate.copy()
    low = dominated(points(candidate[None], aims)[0], front)
    for task, item in rng.permutation(np.argwhere(candidate == (0 if low else 1))):
        candidate[task, item] = 1.0 if low else 0.0
        if dominated(points(candidate[None], aims)[0], front) != low:
            if not low:
                candidate[task, item] = 1.0
            break
    return candidate


def measure(races: Sequence[Race], aims: Sequence[Aim], level: float) -> dict[str, Any]:
    """Rate of false drops and items saved at a declared level, over all and by class."""
    began = time.process_time()
    ran = [run(race, aims, level) for race in races]
    seconds = time.process_time() - began
    saved = np.array([1 - share for share, _ in ran])
    alive = np.array([race.alive for race in races])
    false = int((alive & (saved > 0)).sum())
    kinds = np.array([race.kind for race in races])
    return {
        "alive": int(alive.sum()),
        "false": false,
        "rate": false / int(alive.sum()),
        "interval": interval(false, int(alive.sum())),
        "rate_of_all": false / len(races),
        "saved": float(saved.mean()),
        "saved_dominated": float(saved[~alive].mean()),
        "classes": {
            kind: {
                "alive": int(alive[kinds == kind].sum()),
                "false": int((alive & (saved > 0))[kinds == kind].sum()),
                "saved": float(saved[kinds == kind].mean()),
            }
            for kind in CLASSES
        },
        "milliseconds": 1000 * seconds / sum(looks for _, looks in ran),
    }


def run(race: Race, aims: Sequence[Aim], level: float) -> tuple[float, int]:
    """The share of items that was asked, and how many looks there were."""
    counts = dict.fromkeys(TASKS, ITEMS)
    front, others = named(race.front), named(race.others)
    for look, share in enumerate(SHARES):
        where = race.order[:, : round(share * ITEMS)]
        seen = {
            t: (p, race.candidate[i, p]) for i, (t, p) in enumerate(zip(TASKS, where, strict=True))
        }
        found = verdict(seen, counts, front, aims, look, len(SHARES), level, others)
        if found is not None:
            return share, look + 1
    return 1.0, len(SHARES)


def named(answers: Floats) -> list[dict[str, Floats]]:
    return [dict(zip(TASKS, one, strict=True)) for one in answers]


def interval(hits: int, of: int) -> tuple[float, float]:
    low = beta.ppf(0.025, hits, of - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, of - hits) if hits < of else 1.0
    return float(low), float(high)


def alike(races: Sequence[Race]) -> dict[str, Any]:
    """How the races' answers are: accuracies, front sizes, and how alike candidates answer."""
    values = np.array([race.candidate.mean(axis=1) for race in races if race.kind != "edge"])
    differing = [np.abs(r.candidate - r.front).mean() for r in races if r.kind != "edge"]
    left = [(r.candidate - r.front.mean(axis=0)).var(axis=1).mean() for r in races]
    return {
        "accuracy_quantiles": np.quantile(values, [0.05, 0.5, 0.95]).round(3).tolist(),
        "front": float(np.mean([len(race.front) for race in races])),
        "answers_unlike_a_member": float(np.mean(differing)),
        "variance": float(np.mean([r.candidate.var(axis=1).mean() for r in races])),
        "variance_less_front_mean": float(np.mean(left)),
    }


def show(row: dict[str, Any]) -> None:
    low, high = row["interval"]
    classes = ", ".join(f"{kind} {found['saved']:.0%}" for kind, found in row["classes"].items())
    print(
        f"{row['aims']:<12} level {row['level']:<4}: {row['false']} of {row['alive']} dropped "
        f"falsely, {row['rate']:.2%} ({low:.2%} to {high:.2%}); saved {row['saved']:.1%} "
        f"({classes}); {row['milliseconds']:.2f} ms a look",
        flush=True,
    )


if __name__ == "__main__":
    main()
