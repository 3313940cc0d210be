"""Searches on beds, with their cost in scored items; one JSON line a (bed, algorithm, seed).

    python -m benchmarks.search.run --bed analytic-60 --algorithms random cma auto --seeds 10

Runs that are in the file already are skipped, so a command that was killed goes on. Algorithms are
those of evomerge by name and those of `rivals.py`; with options as ``gp:startup=20``, and with
racing as ``cma+racing``. A seed is the search's, and on an analytic bed the instance's too. Results
go to benchmarks/search/results/BED.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.search import analytic, drive, rivals
from benchmarks.search.bed import Bed, all_positions, fitness
from evomerge.errors import ConfigError, MissingDependency
from evomerge.front import non_dominated
from evomerge.search import make_search
from evomerge.search.algorithms import SearchSettings
from evomerge.search.base import Measured, OptionValue, Search

RESULTS = Path(__file__).parent / "results"
BUDGET = 100
"""Full evaluations."""

OWN = (
    "random",
    "qmc",
    "cma",
    "diagonal-cma",
    "de",
    "tpe",
    "gp",
    "nsga2",
    "nsga3",
)
"""Algorithms of evomerge that stand for the libraries behind them."""

LIBRARIES = ("botorch", "cma", "nevergrad", "numpy", "optuna", "pymoo", "scipy")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bed", required=True)
    parser.add_argument("--algorithms", nargs="+", default=[*OWN, *rivals.RIVALS])
    parser.add_argument("--seeds", type=int, default=10, help="this many, from --first")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--budget", type=int, default=BUDGET, help="full evaluations")
    parser.add_argument("--workers", type=int, default=1, help="simulated ones")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="a jsonl file")
    options = parser.parse_args()
    out = options.out or RESULTS / f"{options.bed}.jsonl"
    seeds = range(options.first, options.first + options.seeds)
    done = {key(line) for line in read(out)}
    todo = [
        (options.bed, name, seed, options.budget, options.workers)
        for seed in seeds
        for name in usable(options.algorithms)
        if (options.bed, name, seed, options.budget, options.workers) not in done
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    for line in _all(todo, options.jobs):
        with out.open("a") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
        print(summary(line), flush=True)


def usable(names: Sequence[str]) -> list[str]:
    """The algorithms whose libraries are installed; the others are named."""
    found = []
    for name in names:
        lacking = rivals.missing(name.partition("+")[0])
        if lacking:
            print(f"skipped: {name} needs {lacking}; see benchmarks/search/README.md", flush=True)
        else:
            found.append(name)
    return found


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; a last line that a kill cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        path.write_text("".join(lines[:-1]))
        lines.pop()
    return [json.loads(line) for line in lines]


def key(line: Mapping[str, Any]) -> tuple[str, str, int, int, int]:
    return line["bed"], line["algorithm"], line["seed"], line["budget"], line["workers"]


@cache
def load_bed(name: str, seed: int) -> Bed:
    """A bed by name; only analytic ones depend on the seed."""
    kind, _, size = name.partition("-")
    if kind == "analytic":
        return analytic.make_bed(int(size), seed)
    return _real(name)


@cache
def _real(name: str) -> Bed:
    from benchmarks.search import real

    return real.bed(name)


def make(bed: Bed, name: str, seed: int, budget: int, measured: Measured) -> Search:
    """The search of an algorithm by its name, with options after a colon."""
    plain, _, given = name.partition(":")
    if plain in rivals.RIVALS:
        return rivals.RIVALS[plain](bed, seed, budget, measured)
    settings = SearchSettings(plain, seed, _options(given))
    return make_search(settings, len(bed.genes), 2, bed.genes, measured)


def run(bed_name: str, name: str, seed: int, budget: int, workers: int) -> dict[str, Any]:
    """One line of results."""
    bed = load_bed(bed_name, seed)
    algorithm, _, racing = name.partition("+")
    if racing not in ("", "racing"):
        raise ConfigError(f"algorithm {name!r}: expected +racing or nothing after the name")
    start = time.perf_counter()
    record = drive.drive(
        bed,
        lambda measured: make(bed, algorithm, seed, budget, measured),
        budget * bed.items,
        workers,
        drive.LEVEL if racing else None,
    )
    wall = time.perf_counter() - start
    return {
        "bed": bed_name,
        "algorithm": name,
        "seed": seed,
        "budget": budget,
        "workers": workers,
        "items": bed.items,
        **_found(bed, record),
        "wall": round(wall, 2),
        "versions": _versions(algorithm.partition(":")[0]),
    }


def _found(bed: Bed, record: drive.Record) -> dict[str, Any]:
    curve = drive.curve(bed, record)
    held_out = {}
    for which, candidate in drive.chosen(record).items():
        values = bed.held_out(candidate.genome)
        held_out[which] = [round(v, 5) for v in fitness(values)]
    return {
        "cost": list(curve.cost),
        "hypervolume": [round(v, 5) for v in curve.hypervolume],
        "best": [round(v, 5) for v in curve.best],
        "generated": [round(v) for v in curve.tokens],
        "held_out": held_out,
        "scored": len(record.scored),
        "probes": record.probes,
        "dropped": len(record.dropped),
        "dropped_items": sum(d.items for d in record.dropped),
        **(race(bed, record) if record.dropped else {}),
        "spent": record.cost,
        "tokens": round(record.tokens),
        "clock": round(record.clock),
        "proposing": round(record.proposing, 3),
        "scoring": round(record.scoring, 3),
    }


def race(bed: Bed, record: drive.Record) -> dict[str, int]:
    """How many candidates came on the front of their time, and how many a drop kept off it."""
    start = [fitness(s.values) for s in record.references]
    points = [fitness(s.values) for s in record.scored]
    entered = sum(_enters(p, [*start, *points[:i]]) for i, p in enumerate(points))
    wrong = 0
    for lost in record.dropped:
        items = bed.metric(lost.genome, all_positions(bed))
        values = {name: sum(found) / len(found) for name, found in items.items()}
        wrong += _enters(fitness(values), [*start, *points[: lost.before]])
    return {"entered": entered, "false_drops": wrong}


def _enters(point: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    return bool(non_dominated([*others, point])[-1])


def _all(todo: Sequence[tuple[str, str, int, int, int]], jobs: int) -> Iterator[dict[str, Any]]:
    skipped: set[str] = set()
    if jobs == 1:
        for task in todo:
            if task[1] not in skipped:
                try:
                    yield run(*task)
                except (ConfigError, MissingDependency) as error:
                    print(f"skipped: {task[1]}: {error}", flush=True)
                    skipped.add(task[1])
        return
    with ProcessPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(run, *task) for task in todo]):
            yield future.result()


def _options(given: str) -> dict[str, OptionValue]:
    pairs = [pair.split("=") for pair in given.split(",") if pair]
    return {name: json.loads(value) for name, value in pairs}


def _versions(algorithm: str) -> dict[str, str]:
    """Of the libraries that a rival stands for."""
    from evomerge.search.algorithms import ALGORITHMS

    own = ALGORITHMS[algorithm].library if algorithm in ALGORITHMS else None
    library = rivals.NEEDS.get(algorithm, own)
    if algorithm in ("evo-merging", "lorahub"):
        library = "nevergrad"
    try:
        return {library: version(library)} if library in LIBRARIES else {}
    except PackageNotFoundError:
        return {}


def summary(line: Mapping[str, Any]) -> str:
    return (
        f"{line['bed']} {line['algorithm']} seed {line['seed']}: hypervolume "
        f"{line['hypervolume'][-1]:.4f}, best {line['best'][-1]:.4f}, held-out "
        f"{line['held_out']['best'][0]:.4f}, proposing {line['proposing']} s, "
        f"scoring {line['scoring']} s"
    )


if __name__ == "__main__":
    main()
