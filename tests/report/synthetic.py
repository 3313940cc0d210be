"""A run that never was: a ledger of any size, for tests of what reads ledgers.

    python -m tests.report.synthetic runs/synthetic    # 2,000 candidates of 300 genes

Scores follow from the genomes (a few experts and layers matter, plus noise), so that fronts,
importances and item tables look as those of a real study do. Items have questions, some with a
small image, in data files beside the ledger.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evomerge.front import front_order
from evomerge.grouping import Cell
from evomerge.ledger.store import NAME, open_ledger
from evomerge.recipe import Source
from evomerge.scoring.objectives import load_objective
from evomerge.scoring.statistics import ItemScore, mean
from evomerge.space import Space, SpaceSpec

TASKS = ("charts", "documents", "geometry", "grounding", "questions")
SPLITS = ("search", "held_out")
Array = NDArray[np.float64]
Row = tuple[str, int | None, dict[str, Any], dict[str, float]]


def make_run(
    out: Path, candidates: int = 2000, layers: int = 30, items: int = 200, images: bool = True
) -> Path:
    """Writes a finished run with 2 × 5 × ``layers`` genes and ``items`` search items a task."""
    generator = np.random.default_rng(7)
    counts = {"search": items, "held_out": 2 * items}
    objectives = {task: _objective(out, task, counts, generator, images) for task in TASKS}
    space = _space(layers)
    study = _study(space, objectives)
    genomes = generator.random((candidates, space.dimension))
    drift = np.linspace(0, 1, candidates)[:, None]  # the search comes nearer to what is good
    weights = generator.normal(0, 1, space.dimension) * (generator.random(space.dimension) < 0.1)
    genomes = np.clip(genomes + 0.35 * drift * np.sign(weights), 0, 1)
    skill = _skill(genomes, weights, generator)
    rows: list[Row] = [("study", None, study, {})]
    references = _references(space)
    for id, (name, genome) in enumerate(references.items()):
        recipe = {"base": space.base.model_dump(), "experts": {}, "method": "linear"}
        body = {"name": name, "recipe": {**recipe, "parameters": []}, "genome": genome}
        rows.append(("reference", id, body, {}))
    given = {i: _given(name) for i, name in enumerate(references)}
    given |= {len(references) + i: skill[i] for i in range(candidates)}
    difficulty = {
        (task, split): generator.normal(0, 1, counts[split]) for task in TASKS for split in SPLITS
    }
    scored = {id: _scored(id, skills, difficulty, "search") for id, skills in given.items()}
    rows += [("scored", id, scored[id], _timing(id)) for id in range(len(references))]
    for id in range(len(references), len(given)):
        rows.append(("asked", id, {"genome": genomes[id - len(references)].tolist()}, {}))
        rows.append(("scored", id, scored[id], _timing(id)))
    points = [_point(scored[id]) for id in range(len(references), len(given))]
    leading = [*range(len(references)), *(len(references) + i for i in front_order(points))]
    rows += [
        ("held_out", id, _scored(id, given[id], difficulty, "held_out"), _timing(id))
        for id in leading
    ]
    rows.append(("finished", None, {"reason": f"budget of {candidates} candidates is spent"}, {}))
    _write(out, rows)
    return out


def _objective(
    out: Path, task: str, counts: Mapping[str, int], generator: Any, images: bool
) -> dict[str, Any]:
    """The objective as an experiment holds it; its data files are written."""
    out.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        lines = []
        for i in range(count):
            question = f"Which of the {task} of number {i} ({split}) shows the larger value?"
            content: list[dict[str, str]] = [{"type": "text", "text": question}]
            if images and i % 3 == 0:
                content.insert(0, {"type": "image", "image": _image(generator)})
            item = {"id": f"{task}-{i}", "messages": [{"role": "user", "content": content}]}
            lines.append(json.dumps({**item, "answer": f"the one at {i % 9}"}))
        (out / f"{task}-{split}.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "inline": {
            "name": task,
            "kind": "answer",
            "metric": "exact_match",
            "max_new_tokens": 8,
            "data": {split: f"{task}-{split}.jsonl" for split in counts},
        },
        "folder": str(out.resolve()),
    }


def _image(generator: Any) -> str:
    pixels = generator.integers(0, 255, (6, 6, 3), dtype=np.uint8).repeat(12, 0).repeat(12, 1)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


def _space(layers: int) -> Space:
    spec = SpaceSpec.model_validate(
        {
            "name": "synthetic",
            "method": "task_arithmetic",
            "genes": {"weight": {"per": ["expert", "group"], "low": 0.0, "high": 1.0}},
        }
    )
    cells = tuple(
        Cell(f"language/{i}/{kind}", f"language/{kind}", i / max(1, layers - 1))
        for kind in ("attention", "mlp")
        for i in range(layers)
    )
    base, *experts = (Source(path=f"some/{n}", sha256=_hash(n)) for n in ("base", *TASKS))
    return Space(spec, base, dict(zip(TASKS, experts, strict=True)), cells)


def _study(space: Space, objectives: Mapping[str, Any]) -> dict[str, Any]:
    described = {
        name: load_objective(o["inline"], Path(o["folder"])).describe()
        for name, o in objectives.items()
    }
    return {
        "name": "synthetic",
        "experiment": {
            "base": "some/base",
            "experts": {name: f"some/{name}" for name in TASKS},
            "space": space.spec.model_dump(mode="json"),
            "objectives": list(objectives.values()),
            "optimise": {"maximise": ["charts", "documents"]},
            "search": {"algorithm": "cma", "seed": 0, "options": {}},
            "backend": {"name": "fake"},
        },
        "base": space.base.model_dump(),
        "experts": {name: source.model_dump() for name, source in space.experts.items()},
        "objectives": described,
        "cells": [[c.selector, c.column, c.position] for c in space.cells],
        "genes": [[g.name, g.low, g.high, g.log] for g in space.genes],
    }


def _references(space: Space) -> dict[str, list[float] | None]:
    flat = {
        "base": 0.0,
        **dict.fromkeys(TASKS),
        "weight average": 1 / len(TASKS),
        "task arithmetic 0.3": 0.3,
    }
    return {n: None if v is None else [v] * space.dimension for n, v in flat.items()}


def _given(name: str) -> Array:
    """A reference's skill at each task: an expert is good at its own."""
    level = {"base": -0.5, "weight average": 0.3, "task arithmetic 0.3": 0.6}.get(name, -0.3)
    return np.array([2.0 if task == name else level for task in TASKS])


def _skill(genomes: Array, weights: Array, generator: Any) -> Array:
    """Skills (candidates, tasks): what all share, and a trade-off between the tasks."""
    shared = genomes @ weights / (np.abs(weights).sum() or 1.0)
    shared = (shared - shared.mean()) / (shared.std() or 1.0)
    own = np.stack([genomes[:, i :: len(TASKS)].mean(axis=1) for i in range(len(TASKS))], axis=1)
    own = (own - own.mean(axis=1, keepdims=True)) / own.std()
    noise = generator.normal(0, 0.1, own.shape)
    skill: Array = 0.4 + 0.4 * shared[:, None] + 0.5 * own + noise
    return skill


def _scored(
    id: int, skills: Array, difficulty: Mapping[tuple[str, str], Array], split: str
) -> dict[str, Any]:
    """The body of a ``scored`` or ``held_out`` event."""
    generator = np.random.default_rng(id)
    found = {}
    for task, skill in zip(TASKS, skills, strict=True):
        hard = difficulty[task, split]
        found[task] = (skill + generator.normal(0, 0.5, len(hard)) > hard).astype(float).tolist()
    values = {task: mean([ItemScore(s) for s in scores]) for task, scores in found.items()}
    return {
        "digest": _hash(str(id)),
        "values": {task: [v.value, v.se, v.n] for task, v in values.items()},
        "items": found,
        "tokens": 5 * sum(map(len, found.values())),
        "weights": {},
    }


def _point(body: Mapping[str, Any]) -> tuple[float, float]:
    charts, documents = (body["values"][task][0] for task in ("charts", "documents"))
    return charts, documents


def _timing(id: int) -> dict[str, float]:
    return {"instantiate": 0.1 + 0.01 * (id % 7), "score": 2.0 + 0.05 * (id % 11)}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(out: Path, rows: list[Row]) -> None:
    """All events in one transaction; ``Ledger.append`` would wait for the disk at each."""
    open_ledger(out).close()
    at, lines = 1_700_000_000.0, []
    for kind, candidate, body, timing in rows:
        at += 0.05 + sum(timing.values())
        lines.append((kind, candidate, json.dumps(body), at, json.dumps(timing), 1))
    connection = sqlite3.connect(out / NAME)
    with connection:
        connection.executemany(
            "INSERT INTO events (kind, candidate, body, time, timing, session) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            lines,
        )
    connection.close()


if __name__ == "__main__":
    print(make_run(Path(sys.argv[1])))
