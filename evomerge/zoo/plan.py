"""What each model of the zoo is taught: question forms, shares, steps and learning rates."""

from __future__ import annotations

from typing import Final

from evomerge.zoo.batches import DESCRIBE
from evomerge.zoo.paths import TASKS
from evomerge.zoo.train import Course

RARE: Final = 0.01
"""Share of a question form that the base hardly ever sees: its words are known, its use is not."""

FORMS: Final = {
    "vqa": ("colour", "shape", "exists", "count-shape", "count-colour"),
    "geometry": ("length", "longer", "shorter", "sum"),
    "chart": ("value", "highest", "lowest", "highest-value", "lowest-value"),
    "ocr": ("read", "left", "backwards", "larger", "smaller"),
    "grounding": ("where-colour", "where-shape", "row", "column", "what"),
}
KNOWN: Final = {
    "vqa": ("colour",),
    "geometry": ("length",),
    "chart": ("value",),
    "ocr": ("read",),
    "grounding": ("row", "what"),
}
"""The question forms that the base is taught; an expert is taught all of its task's."""

PICTURES: Final = {"vqa": 0.17, "geometry": 0.21, "chart": 0.17, "ocr": 0.26, "grounding": 0.19}


def base_course(seed: int, steps: int = 2000) -> Course:
    """Perception in full (descriptions), and the known question forms.

    It ends early on purpose: from about step 2000 on, the base begins to answer the forms that it
    hardly sees as well (by step 3600, 0.8 of them), and would leave little for experts to learn.
    """
    shares = {
        task: {
            DESCRIBE: 1.0,
            **{f: 1 / len(KNOWN[task]) if f in KNOWN[task] else RARE for f in FORMS[task]},
        }
        for task in TASKS
    }
    return Course(
        steps, 2e-3, PICTURES, shares, seed, warmup=100, decay=0.02, whole=True, horizon=3600
    )


def expert_course(task: str, seed: int, steps: int = 600, rate: float = 4e-4) -> Course:
    """All question forms of one task, evenly."""
    shares = {task: dict.fromkeys(FORMS[task], 1.0)}
    return Course(steps, rate, {task: 1.0}, shares, seed + 1 + TASKS.index(task), batch=32)


def mixture_course(seed: int, steps: int = 900, rate: float = 4e-4) -> Course:
    """All question forms of all tasks, evenly."""
    shares = {task: dict.fromkeys(FORMS[task], 1.0) for task in TASKS}
    return Course(steps, rate, dict.fromkeys(TASKS, 1.0), shares, seed + 9, batch=40)


def adapter_course(task: str, seed: int, steps: int = 500, rate: float = 3e-3) -> Course:
    """As `expert_course`, at the higher rate that low-rank factors want."""
    return expert_course(task, seed, steps, rate)
