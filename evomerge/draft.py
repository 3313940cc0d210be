"""An experiment drafted from checkpoints and data, by rules that the file states.

data       items are split by a hash of what they ask: half for the search, at most 200 an
           objective, the rest held out; too few for two halves of 10 are all searched on.
objective  items with choices: choice. Answers that are all numbers: the last number of the answer.
           Short answers (at most 12 words): exact match. Longer ones: perplexity of the answer.
space      task arithmetic with one coefficient an expert, depth group and module kind (attention,
           mlp); as many depth groups as keep it at 60 genes or fewer, at least one.
search     auto, which chooses when the study is opened (`evomerge.search.auto`).
front      mean against minimum of the objectives, where several are maximised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evomerge.checkpoints.layout import layout
from evomerge.checkpoints.sources import Sources
from evomerge.errors import DataError, OutputError
from evomerge.scoring.data import Item, content_key, load_items
from evomerge.scoring.metrics import numeric

SEARCH_ITEMS = 200
LEAST_ITEMS = 10
SHORT_WORDS = 12
MOST_GENES = 60


@dataclass(frozen=True)
class Task:
    """Items of one objective, split, and how they are to be scored."""

    name: str
    search: tuple[Item, ...]
    held_out: tuple[Item, ...]
    kind: str  # choice, numeric, exact_match, perplexity


@dataclass(frozen=True)
class Shape:
    """The space: depth groups of how many blocks, and how many genes that makes."""

    depth: int
    blocks: int
    genes: int


def task_of(name: str, path: Path) -> Task:
    """Splits the items of a data file and decides how to score them.

    Raises:
        DataError: the file cannot be read, or an item has no reference answer.
    """
    items = load_items(path)
    for item in items:
        if not item.answer:
            raise DataError(f"{path}, item {item.id}: no reference answer; every item needs one")
    ranked: dict[str, list[Item]] = {}
    for item in items:
        ranked.setdefault(content_key(item), []).append(item)  # the same question stays together
    ordered = [ranked[key] for key in sorted(ranked)]
    if len(ordered) < 2 * LEAST_ITEMS:
        return Task(name, tuple(items), (), kind_of(items))
    cut = min(len(ordered) // 2, SEARCH_ITEMS)
    search, held_out = (
        tuple(item for group in part for item in group) for part in (ordered[:cut], ordered[cut:])
    )
    return Task(name, search, held_out, kind_of(items))


def kind_of(items: Sequence[Item]) -> str:
    """How items with answers are scored: choice, numeric, exact_match or perplexity."""
    answers = [item.answer or "" for item in items]
    if all(item.choices for item in items):
        return "choice"
    if all(_is_number(answer) for answer in answers):
        return "numeric"
    if max(len(answer.split()) for answer in answers) <= SHORT_WORDS:
        return "exact_match"
    return "perplexity"


def shape_of(sources: Sources) -> Shape:
    """As many depth groups of the language tower as keep the space at 60 genes or fewer."""
    places = layout(sources.base.tensors).values()
    blocks = {p.block for p in places if p.tower == "language" and p.block is not None}
    per_group = 2 * len(sources.experts)
    depth = max(1, min(len(blocks), MOST_GENES // per_group))
    return Shape(depth, len(blocks), depth * per_group)


def new_tokens(answers: Sequence[str], tokenizer: Any) -> int:
    """Room for half as many tokens again as the longest answer has, in steps of 8."""
    longest = max(len(tokenizer(answer)["input_ids"]) for answer in answers)
    return 8 * math.ceil((1.5 * longest + 1) / 8)


def experiment_text(
    base: str,
    experts: Mapping[str, str],
    tasks: Sequence[Task],
    limits: Mapping[str, int],
    shape: Shape,
    candidates: int,
    gpus: int,
) -> str:
    """The experiment as commented YAML.

    Args:
        limits: ``max_new_tokens`` of the tasks whose answers are generated.
        gpus: of this machine; above one, each gets a worker.
    """
    optimise = _optimise(tasks)
    parts = [
        "# Drafted by `evomerge init`. Check it with `evomerge validate`, start it with "
        "`evomerge run`.",
        _line_of("base", base) + "experts:\n" + _lines(experts, "  "),
        f"# One coefficient an expert for each of {shape.depth} depth groups (of {shape.blocks} "
        f"blocks) and each of\n# attention and mlp: {shape.genes} genes. Embeddings, norms, "
        "biases and other towers stay at the base.\n# Sparse merges instead: space: layerwise-ties",
        "space:\n" + _lines(_space(shape), "  "),
        "# Items were split by a hash of what they ask; the search never sees the held-out ones.",
        "objectives:\n"
        + "".join(
            "  - " + _lines(_objective(task, limits), "    ").removeprefix("    ") for task in tasks
        ),
        "# What the front is over: names of objectives, or mean and min of those maximised.",
        _line_of("optimise", optimise),
        "# auto chooses by genes, items, likelihoods and budget; `evomerge validate` says what and "
        "why.\n# Or name one: algorithm: cma",
        _line_of("search", {"algorithm": "auto", "seed": 0}),
        "# In full evaluations. Also: items, tokens or hours; whichever is reached first.",
        _line_of("budget", {"candidates": candidates}),
        _line_of("backend", {"name": "transformers"}),
    ]
    if gpus > 1:
        parts.append(f"# One worker for each of the {gpus} GPUs of this machine.")
        parts.append(_line_of("pool", {"name": "ray", "workers": gpus, "gpus": 1}))
    return "\n".join(parts)


def write_draft(folder: Path, text: str, tasks: Sequence[Task]) -> Path:
    """Writes ``experiment.yaml`` and the split items into a new folder; returns the file.

    Raises:
        OutputError: the folder exists and is not empty, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists already; choose another --out or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for task in tasks:
            for split, items in (("search", task.search), ("held-out", task.held_out)):
                if items:
                    lines = "".join(_line(item) for item in items)
                    (folder / f"{task.name}-{split}.jsonl").write_text(lines, encoding="utf-8")
        (folder / "experiment.yaml").write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error}); choose another --out") from error
    return folder / "experiment.yaml"


def _is_number(text: str) -> bool:
    try:
        return numeric(text, text) == 1.0 and len(text.split()) == 1
    except ValueError:
        return False


def _space(shape: Shape) -> dict[str, Any]:
    return {
        "method": "task_arithmetic",
        "groups": {"towers": ["language"], "depth": shape.depth, "modules": ["attention", "mlp"]},
        "genes": {"weight": {"per": ["expert", "group"], "low": 0.0, "high": 1.0}},
    }


def _objective(task: Task, limits: Mapping[str, int]) -> dict[str, Any]:
    data = {"search": f"{task.name}-search.jsonl"}
    if task.held_out:
        data["held_out"] = f"{task.name}-held-out.jsonl"
    if task.kind in ("choice", "perplexity"):
        return {"name": task.name, "kind": task.kind, "data": data}
    return {
        "name": task.name,
        "kind": "answer",
        "metric": task.kind,
        "max_new_tokens": limits[task.name],
        "data": data,
    }


def _line(item: Item) -> str:
    """The item as a line of JSON; its images by absolute path, wherever the line goes."""
    record = {
        "id": item.id,
        "messages": item.messages,
        "answer": item.answer,
        **({"choices": item.choices} if item.choices else {}),
        **item.extra,
    }
    return json.dumps(record, ensure_ascii=False, default=dict) + "\n"


def _optimise(tasks: Sequence[Task]) -> dict[str, Any]:
    maximised = [t.name for t in tasks if t.kind != "perplexity"]
    minimised = [t.name for t in tasks if t.kind == "perplexity"]
    found: dict[str, Any] = {}
    if maximised:
        found["maximise"] = ["mean", "min"] if len(maximised) > 1 else maximised
    if minimised:
        found |= {"minimise": minimised, "reference": dict.fromkeys(minimised, 100.0)}
    return found


def _lines(data: Mapping[str, Any], indent: str) -> str:
    """A mapping as one line a key."""
    return "".join(indent + _line_of(key, value) for key, value in data.items())


def _line_of(key: str, value: Any) -> str:
    shown = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return f"{_scalar(key)}: {shown.removesuffix('...' + chr(10)).rstrip()}\n"


def _scalar(key: str) -> str:
    return yaml.safe_dump(key, width=10_000).removesuffix("...\n").rstrip()
