"""The zoo's data cards: templates in which everything measured is filled in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from evomerge.zoo.items import SIZES
from evomerge.zoo.paths import NAMES, TASKS, TEXT_NAMES, TEXT_TASKS

_TEMPLATE: Final = Path(__file__).with_name("card_template.md")
_TEXT_TEMPLATE: Final = Path(__file__).parent / "text" / "card_template.md"


def _table(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def standard_error(accuracy: float, count: int) -> float:
    """Of an accuracy on `count` independent items: sqrt(p (1 - p) / n)."""
    return float((accuracy * (1 - accuracy) / count) ** 0.5)


def _accuracies(
    table: Mapping[str, Mapping[str, float]], count: int, tasks: tuple[str, ...] = TASKS
) -> str:
    rows = []
    for name, scores in table.items():
        cells = [
            f"{scores[task]:.3f} ± {standard_error(scores[task], count):.3f}" for task in tasks
        ]
        mean = sum(scores[task] for task in tasks) / len(tasks)
        error = sum(standard_error(scores[task], count) ** 2 for task in tasks) ** 0.5 / len(tasks)
        own = name.partition("/")[2]
        if own in tasks:
            cells[tasks.index(own)] = f"**{cells[tasks.index(own)]}**"
        rows.append([name, *cells, f"{mean:.3f} ± {error:.3f}"])
    return _table(["model", *tasks, "mean"], rows)


def _training(records: Mapping[str, Mapping[str, Any]], batch: str = "pictures_a_step") -> str:
    head = ["checkpoint", "steps", batch.replace("_", " "), "peak learning rate", "seconds"]
    keys = ("steps", batch, "learning_rate", "seconds")
    return _table(head, [[name, *(f"{of[key]:g}" for key in keys)] for name, of in records.items()])


def _forms() -> str:
    from evomerge.zoo import plan

    rows = []
    for task in TASKS:
        new = [form for form in plan.FORMS[task] if form not in plan.KNOWN[task]]
        rows.append([task, ", ".join(plan.KNOWN[task]), ", ".join(new)])
    head = "| task | forms the base is taught | forms it hardly sees |\n| --- | --- | --- |\n"
    return head + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _records(root: Path, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: _read(root / name / "training.json") for name in names}


def render(root: Path) -> str:
    """The card of the zoo built under `root`, from its measured.json and each checkpoint's
    training.json.
    """
    measured, records = _read(root / "measured.json"), _records(root, NAMES)
    from evomerge.zoo import network, plan, store

    weights = sum(
        path.stat().st_size for name in NAMES for path in (root / name).glob("*.safetensors")
    )
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


def render_text(root: Path) -> str:
    """The card of the text zoo built under `root / "text"`."""
    from evomerge.zoo.text import items, model, plan

    measured = _read(root / "text" / "measured.json")
    records = _records(root, TEXT_NAMES)
    weights = sum(path.stat().st_size for path in (root / "text").rglob("*.safetensors"))
    forms = [
        [task, ", ".join(plan.KNOWN[task]), ", ".join(f for f in of if f not in plan.KNOWN[task])]
        for task, of in items.FORMS.items()
    ]
    filled = {
        "items": measured["items"],
        "search": items.SIZES["search"],
        "held_out": items.SIZES["held_out"],
        "accuracies": _accuracies(measured["accuracy"], measured["items"], TEXT_TASKS),
        "training": _training(records, "questions_a_step"),
        "forms": _table(["task", "the base is taught", "it hardly sees"], forms),
        "parameters": f"{model.parameter_count():,}",
        "megabytes": f"{weights / 1e6:.1f}",
        "minutes": f"{sum(record['seconds'] for record in records.values()) / 60:.0f}",
    }
    return _TEXT_TEMPLATE.read_text(encoding="utf-8").format(**filled)
