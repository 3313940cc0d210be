"""What each model of the text zoo is taught: forms, shares, steps and learning rates."""

from __future__ import annotations

from typing import Final

from evomerge.zoo.paths import TEXT_TASKS
from evomerge.zoo.text.items import FORMS
from evomerge.zoo.train import Course

KNOWN: Final = {
    "reverse": ("4", "5"),
    "sort": ("4",),
    "shift": ("1", "2"),
    "add": ("none", "tens"),
    "unique": ("4",),
}
"""The forms that the base is taught; an expert is taught all of its task's, evenly."""
RARE: Final = {"reverse": 0.01, "sort": 0.01, "shift": 0.04, "add": 0.03, "unique": 0.01}
"""Share of every other form beside 1 of a known one."""
QUESTIONS: Final = {"reverse": 1.0, "sort": 0.6, "shift": 0.7, "add": 2.0, "unique": 0.7}
"""Shares of the tasks in what the base is taught: addition takes it longest."""
STEPS: Final = {"base": 600, "reverse": 160, "sort": 160, "shift": 120, "add": 400, "unique": 240}
"""An expert ends soon after it knows its task: longer runs forget more and merge worse."""


def course(name: str, seed: int, share: float = 1.0) -> Course:
    """The course of "base" or of a task's expert; `share` of its steps, to try a build."""
    steps = max(1, round(STEPS[name] * share))
    if name == "base":
        shares = {
            task: {form: 1.0 if form in KNOWN[task] else RARE[task] for form in FORMS[task]}
            for task in TEXT_TASKS
        }
        return Course(steps, 2e-3, QUESTIONS, shares, seed, 64, decay=0.02, whole=True)
    shares = {name: dict.fromkeys(FORMS[name], 1.0)}
    return Course(steps, 3e-4, {name: 1.0}, shares, seed + 1 + TEXT_TASKS.index(name), 48)
