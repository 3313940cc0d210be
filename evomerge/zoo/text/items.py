"""The five tasks of the text zoo: questions in words, letters and digits, and the right answers.

`draw(task, form, split, rng)` makes one; `questions(task, split, count)` are the items of a file.
The splits (train, search, held_out) are disjoint by construction: a question belongs to the split
that its hash names.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np

from evomerge.zoo.paths import TEXT_TASKS

SIZES: Final = {"search": 200, "held_out": 400}
"""Items of each task in the files of a split; train has no end."""
SPLITS: Final = ("train", *SIZES)
LETTERS: Final = "abcdefghijklmnop"
FORMS: Final = {
    "reverse": ("4", "5", "6", "7"),
    "sort": ("4", "5", "6", "7"),
    "shift": ("1", "2", "3", "4"),
    "add": ("none", "ones", "tens", "both"),
    "unique": ("4", "5", "6", "7"),
}
"""Kinds of questions of a task: how many letters, how far to shift, which digits carry."""


@dataclass(frozen=True)
class Item:
    """One question and its answer: tokens with spaces between them."""

    id: str
    task: str
    form: str
    question: str
    answer: str


def _letters(rng: np.random.Generator, count: int, among: int = len(LETTERS)) -> list[str]:
    return [LETTERS[place] for place in rng.integers(0, among, count)]


def _reverse(rng: np.random.Generator, form: str) -> tuple[list[str], list[str]]:
    said = _letters(rng, int(form))
    return said, said[::-1]


def _sort(rng: np.random.Generator, form: str) -> tuple[list[str], list[str]]:
    said = _letters(rng, int(form))
    return said, sorted(said)


def _shift(rng: np.random.Generator, form: str) -> tuple[list[str], list[str]]:
    """Each letter so many places on in the alphabet, which begins again after its end."""
    said = _letters(rng, 4)
    return [form, *said], [LETTERS[(LETTERS.index(x) + int(form)) % len(LETTERS)] for x in said]


def _add(rng: np.random.Generator, form: str) -> tuple[list[str], list[str]]:
    """Two numbers of two digits; `form` says which digits carry."""
    while True:
        first, second = (int(n) for n in rng.integers(10, 100, 2))
        carries = (first % 10 + second % 10 >= 10, first + second >= 100)
        if FORMS["add"][carries[0] + 2 * carries[1]] == form:
            return [*str(first), "+", *str(second)], [*str(first + second)]


def _unique(rng: np.random.Generator, form: str) -> tuple[list[str], list[str]]:
    """Each letter where it comes first; about half of them come again."""
    kinds = rng.permutation(len(LETTERS))[: int(form) // 2 + 1]
    said = [LETTERS[kinds[place]] for place in rng.integers(0, len(kinds), int(form))]
    return said, list(dict.fromkeys(said))


_DRAW: Final[dict[str, Callable[[np.random.Generator, str], tuple[list[str], list[str]]]]] = {
    "reverse": _reverse,
    "sort": _sort,
    "shift": _shift,
    "add": _add,
    "unique": _unique,
}


def home(question: str) -> str:
    """The split a question belongs to: one tenth search, one tenth held_out, the rest train."""
    turn = zlib.crc32(question.encode()) % 10
    return {0: "search", 1: "held_out"}.get(turn, "train")


def draw(task: str, form: str, split: str, rng: np.random.Generator) -> tuple[str, str]:
    """A question of the split and its answer."""
    while True:
        said, answer = _DRAW[task](rng, form)
        question = " ".join([task, *said])
        if home(question) == split:
            return question, " ".join(answer)


@cache
def questions(task: str, split: str, count: int, seed: int = 0) -> tuple[Item, ...]:
    """`count` different questions of a split; forms take turns, so each has its equal share."""
    rng = np.random.default_rng([TEXT_TASKS.index(task), SPLITS.index(split), seed])
    found: dict[str, Item] = {}
    while len(found) < count:
        form = FORMS[task][len(found) % len(FORMS[task])]
        question, answer = draw(task, form, split, rng)
        name = f"{task}-{split}-{len(found):04d}"
        found.setdefault(question, Item(name, task, form, question, answer))
    return tuple(found.values())


def record(of: Item) -> dict[str, Any]:
    """The item as one line of an objective's jsonl file."""
    messages = [{"role": "user", "content": of.question}]
    return {"id": of.id, "messages": messages, "answer": of.answer}
