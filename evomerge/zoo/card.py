"""The zoo's data card: a template in which everything measured is filled in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from evomerge.zoo.items import SIZES
from evomerge.zoo.paths import NAMES, TASKS

_TEMPLATE: Final = Path(__file__).with_name("card_template.md")


def _table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def standard_error(accuracy: float, count: int) -> float:
    """Of an accuracy on `count` independent items: sqrt(p (1 - p) / n)."""
    return float((accuracy * (1 - accuracy) / count) ** 0.5)


def _accuracies(table: Mapping[str, Mapping[str, float]], count: int) -> str:
    rows = []
    for name, scores in table.items():
        cells = [
            f"{scores[task]:.3f} ± {standard_error(scores[task], count):.3f}" for task in TASKS
        ]
        mean = sum(scores[task] for task in TASKS) / len(TASKS)
        error = sum(standard_error(scores[task], count) ** 2 for task in TASKS) ** 0.5 / len(TASKS)
        own = name.partition("/")[2]
        if own in TASKS:
            cells[TASKS.index(own)] = f"**{cells[TASKS.index(own)]}**"
        rows.append([name, *cells, f"{mean:.3f} ± {error:.3f}"])
    return _table(["model", *TASKS, "mean"], rows)


def _training(records: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["checkpoint", "steps", "pictures a step", "peak learning rate", "seconds"]
    keys = ("steps", "pictures_a_step", "learning_rate", "seconds")
    return _table(head, [[name, *(f"{of[key]:g}" for key in keys)] for name, of in records.items()])


def _forms() -> str:
    from evomerge.zoo import plan

    rows = []
    for task in TASKS:
        new = [form for form in plan.FORMS[task] if form not in plan.KNOWN[task]]
        rows.append([task, ", ".join(plan.KNOWN[task]), ", ".join(new)])
    head = "| task | forms the base is taught | forms it hardly sees |\n| --- | --- | --- |\n"
    return head + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def render(root: Path) -> str:
    """The card of the zoo built under `root`, from its measured.json and each checkpoint's
    training.json.
    """
    measured = json.loads((root / "measured.json").read_text(encoding="utf-8"))
    records = {
        name: json.loads((root / name / "training.json").read_text(encoding="utf-8"))
        for name in NAMES
    }
    from evomerge.zoo import network, plan, store

    weights = sum(path.stat().st_size for path in root.rglob("*.safetensors"))
    filled = {
        "items": measured["items"],
        "search": SIZES["search"],
        "held_out": SIZES["held_out"],
        "accuracies": _accuracies(measured["accuracy"], measured["items"]),
        "training": _training(records),
        "forms": _forms(),
        "parameters": f"{network.parameter_count():,}",
        "megabytes": f"{weights / 1e6:.1f}",
        "rank": store.RANK,
        "base_steps": records["base"]["steps"],
        "base_horizon": plan.base_course(0).horizon,
        "minutes": round(sum(record["seconds"] for record in records.values()) / 60),
    }
    return _TEMPLATE.read_text(encoding="utf-8").format(**filled)
