"""The zoo measured: every model and four plain merges, on all held-out items of all five tasks;
the text zoo likewise, with two plain merges.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from evomerge.zoo import evaluate, items, store
from evomerge.zoo.paths import TASKS, TEXT_TASKS
from evomerge.zoo.text import model as text_model

Change = Mapping[str, Tensor]
ARITHMETIC: Final = 0.3
ROWS: Final = 2 + 2 * (len(TASKS) + 2)
TEXT_ROWS: Final = 1 + len(TEXT_TASKS) + 2


def full_change(base: Any, directory: Path) -> dict[str, Tensor]:
    """Expert minus base, the matrices that differ: name -> float32."""
    start, end = base.state_dict(), store.load_model(directory).state_dict()
    return {k: end[k] - start[k] for k in start if not torch.equal(start[k], end[k])}


def moved(base: Any, changes: Iterable[Change], weight: float) -> Any:
    """A copy of `base` plus `weight` times the sum of the changes, rounded to bfloat16 (held in
    float32).
    """
    model = copy.deepcopy(base)
    state = model.state_dict()
    for change in changes:
        for name, delta in change.items():
            state[name] += weight * delta
    for value in state.values():
        value.copy_(value.to(torch.bfloat16).float())
    return model


def score(model: Any, count: int, split: str = "held_out") -> dict[str, float]:
    """Accuracy on the first `count` items of each task's split."""
    return {task: evaluate.accuracy(model, task, split, count) for task in TASKS}


def measure(
    root: Path, count: int = items.SIZES["held_out"], note: Callable[[str], None] = lambda row: None
) -> dict[str, dict[str, float]]:
    """Rows of the data card's table, from the checkpoints under `root`; `note(row)` before each."""
    base = store.load_model(root / "base")
    changes = {
        "full": [full_change(base, root / "full" / task) for task in TASKS],
        "lora": [store.adapter_change(root / "lora" / task) for task in TASKS],
    }
    rows: dict[str, Callable[[], Any]] = {
        "base": lambda: base,
        "mixture": lambda: store.load_model(root / "mixture"),
    }
    for kind, each in changes.items():
        for task, change in zip(TASKS, each, strict=True):
            rows[f"{kind}/{task}"] = lambda change=change: moved(base, [change], 1.0)  # type: ignore[misc]
        for weight in (1 / len(TASKS), ARITHMETIC):
            name = "average" if weight == 1 / len(TASKS) else f"task arithmetic {weight}"
            rows[f"{kind}: {name}"] = lambda each=each, weight=weight: moved(base, each, weight)  # type: ignore[misc]
    table = {}
    for name, make in rows.items():
        note(name)
        table[name] = score(make(), count)
    return table


def measure_text(
    root: Path, count: int = items.SIZES["held_out"], note: Callable[[str], None] = lambda row: None
) -> dict[str, dict[str, float]]:
    """As `measure`, of the text zoo's checkpoints under `root / "text"`."""
    base = store.load_model(root / "text" / "base")
    changes = {task: full_change(base, root / "text" / task) for task in TEXT_TASKS}
    rows: dict[str, tuple[list[dict[str, Tensor]], float]] = {
        "text/base": ([], 0.0),
        **{f"text/{task}": ([change], 1.0) for task, change in changes.items()},
        "average": ([*changes.values()], 1 / len(TEXT_TASKS)),
        f"task arithmetic {ARITHMETIC}": ([*changes.values()], ARITHMETIC),
    }
    table = {}
    for name, (each, weight) in rows.items():
        note(name)
        model = moved(base, each, weight)
        table[name] = {t: text_model.accuracy(model, t, "held_out", count) for t in TEXT_TASKS}
    return table
