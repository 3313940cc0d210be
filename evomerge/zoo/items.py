"""The five tasks of the zoo: pictures, questions about them, and the right answers.

`item(task, split, seed, index)` is a pure function: the same arguments give the same item in every
process and on every machine. Three splits (train, search, held_out) are disjoint by construction: a
picture belongs to the split that the hash of its pixels names, and handwritten digits come from
disjoint sets of source images.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from evomerge.zoo import draw
from evomerge.zoo.paths import TASKS

SPLITS: Final = ("train", "search", "held_out")
SIZES: Final = {"search": 200, "held_out": 400}
"""Items of each task in the files of a split; train has no end."""
LARGEST_NUMBER: Final = 16
CELLS: Final = 4

_COLOURS: Final = tuple(draw.COLOURS)


@dataclass(frozen=True)
class Scene:
    """One picture (28, 28, 3), what is on it in words, and one question for each form of its
    task.
    """

    image: draw.Image
    description: str
    questions: tuple[tuple[str, str, str], ...]  # form, question, answer


@dataclass(frozen=True)
class Item:
    """One question about one picture."""

    id: str
    task: str
    form: str
    image: draw.Image
    question: str
    answer: str


def _pick(rng: np.random.Generator, names: tuple[str, ...], count: int) -> list[str]:
    return [names[i] for i in rng.permutation(len(names))[:count]]


def _any(rng: np.random.Generator, names: list[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _unique(names: list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count == 1]


def _vqa(rng: np.random.Generator, split: str) -> Scene | None:
    """One to four shapes, at most one in each quarter of the picture."""
    count = int(rng.integers(1, 5))
    places = sorted(rng.permutation(4)[:count].tolist())
    palette, kinds = _pick(rng, _COLOURS, 3), _pick(rng, draw.SHAPES, 3)
    colours = [_any(rng, palette) for _ in places]
    shapes = [_any(rng, kinds) for _ in places]
    if not _unique(shapes) or not _unique(colours):
        return None
    canvas = draw.blank(rng)
    for place, colour, shape in zip(places, colours, shapes, strict=True):
        size = int(rng.integers(9, 13))
        row, column = (int(n) for n in rng.integers(0, 14 - size + 1, 2))
        draw.stamp(
            canvas,
            draw.shape_mask(shape, size),
            place // 2 * 14 + row,
            place % 2 * 14 + column,
            draw.ink(colour, rng),
        )
    seen = {p: f"{c} {s}" for p, c, s in zip(places, colours, shapes, strict=True)}
    shape, colour = _any(rng, _unique(shapes)), _any(rng, _unique(colours))
    kind, tint = _any(rng, kinds), _any(rng, palette)
    there = bool(rng.integers(2))
    pairs = [f"{c} {s}" for c in palette for s in kinds]
    pair = _any(rng, [one for one in pairs if (one in seen.values()) == there])
    return Scene(
        draw.finish(canvas),
        " ".join(seen.get(place, "none") for place in range(4)),
        (
            ("colour", f"what colour is the {shape} ?", colours[shapes.index(shape)]),
            ("shape", f"what shape is the {colour} one ?", shapes[colours.index(colour)]),
            ("exists", f"is there a {pair} ?", "yes" if there else "no"),
            ("count-shape", f"how many of shape {kind} ?", str(shapes.count(kind))),
            ("count-colour", f"how many of colour {tint} ?", str(colours.count(tint))),
        ),
    )


def _geometry(rng: np.random.Generator, split: str) -> Scene | None:
    """Two lines, both level or both upright, one in each half; 3 pixels are one unit of length."""
    first, second = (int(n) for n in rng.permutation(8)[:2] + 1)
    colours = _pick(rng, _COLOURS, 2)
    canvas = draw.blank(rng)
    across = canvas if rng.integers(2) else canvas.transpose(1, 0, 2)
    for half, (length, colour) in enumerate(zip((first, second), colours, strict=True)):
        start = int(rng.integers(0, draw.SIZE - 3 * length + 1))
        lane = half * 14 + int(rng.integers(2, 9))
        wide = int(rng.integers(3, 5))
        draw.bar(
            across,
            slice(lane, lane + wide),
            slice(start, start + 3 * length),
            draw.ink(colour, rng),
        )
    pick = int(rng.integers(2))
    longer = int(second > first)
    return Scene(
        draw.finish(canvas),
        f"{colours[0]} {first} {colours[1]} {second}",
        (
            ("length", f"how long is the {colours[pick]} line ?", str((first, second)[pick])),
            ("longer", "which line is longer ?", colours[longer]),
            ("shorter", "which line is shorter ?", colours[1 - longer]),
            ("sum", "how long are both lines together ?", str(first + second)),
        ),
    )


def _chart(rng: np.random.Generator, split: str) -> Scene | None:
    """Three or four bars side by side, 1 to 8 units high, 3 pixels a unit."""
    count = int(rng.integers(3, 5))
    values = (rng.permutation(8)[:count] + 1).tolist()
    colours = _pick(rng, _COLOURS, count)
    canvas = draw.blank(rng)
    floor = draw.SIZE - 1
    for place, (value, colour) in enumerate(zip(values, colours, strict=True)):
        left = place * 7 + int(rng.integers(0, 2))
        draw.bar(
            canvas,
            slice(floor - 3 * value, floor),
            slice(left, left + int(rng.integers(5, 7))),
            draw.ink(colour, rng),
        )
    draw.bar(canvas, slice(floor, draw.SIZE), slice(0, draw.SIZE), np.full(3, 200, np.float32))
    pick = int(rng.integers(count))
    high, low = values.index(max(values)), values.index(min(values))
    return Scene(
        draw.finish(canvas),
        " ".join(f"{c} {v}" for c, v in zip(colours, values, strict=True)),
        (
            ("value", f"what is the value of the {colours[pick]} bar ?", str(values[pick])),
            ("highest", "which bar is highest ?", colours[high]),
            ("lowest", "which bar is lowest ?", colours[low]),
            ("highest-value", "what is the highest value ?", str(values[high])),
            ("lowest-value", "what is the lowest value ?", str(values[low])),
        ),
    )


def _ocr(rng: np.random.Generator, split: str) -> Scene | None:
    """Two digits side by side, both handwritten or both printed."""
    digits = [int(n) for n in rng.permutation(10)[:2]]
    by_hand = bool(rng.integers(2))
    canvas = draw.blank(rng)
    images, places = draw.handwritten(split)
    for half, digit in enumerate(digits):
        if by_hand:
            source = images[places[digit][int(rng.integers(len(places[digit])))]]
            height, width = int(rng.integers(14, 21)), int(rng.integers(12, 15))
        else:
            source = draw.printed_digit(digit)
            height, width = int(rng.integers(13, 21)), int(rng.integers(8, 13))
        top = int(rng.integers(2, draw.SIZE - height - 1))
        left = half * 14 + int(rng.integers(0, 14 - width + 1))
        colour = draw.ink(_any(rng, list(_COLOURS)), rng, 25)
        draw.stamp(canvas, draw.resize(source, height, width), top, left, colour)
    return Scene(
        draw.finish(canvas),
        f"{digits[0]} {digits[1]}",
        (
            ("read", "read the digits .", f"{digits[0]} {digits[1]}"),
            ("left", "what is the left digit ?", str(digits[0])),
            ("backwards", "read the digits from right to left .", f"{digits[1]} {digits[0]}"),
            ("larger", "which digit is larger ?", str(max(digits))),
            ("smaller", "which digit is smaller ?", str(min(digits))),
        ),
    )


def _grounding(rng: np.random.Generator, split: str) -> Scene | None:
    """Two or three small shapes in the cells of a 4 x 4 grid; rows and columns count from 1, top
    left.
    """
    count = int(rng.integers(2, 4))
    cells = sorted(rng.permutation(CELLS * CELLS)[:count].tolist())
    colours, shapes = _pick(rng, _COLOURS, count), _pick(rng, draw.SHAPES, count)
    canvas = draw.blank(rng)
    for cell, colour, shape in zip(cells, colours, shapes, strict=True):
        size = int(rng.integers(6, 8))
        row, column = (int(n) for n in rng.integers(0, 7 - size + 1, 2))
        draw.stamp(
            canvas,
            draw.shape_mask(shape, size),
            cell // CELLS * 7 + row,
            cell % CELLS * 7 + column,
            draw.ink(colour, rng),
        )
    spots = [(str(cell // CELLS + 1), str(cell % CELLS + 1)) for cell in cells]
    pick = int(rng.integers(count))
    colour, shape, (row_name, column_name) = colours[pick], shapes[pick], spots[pick]
    return Scene(
        draw.finish(canvas),
        " ".join(f"{c} {s} {r} {k}" for c, s, (r, k) in zip(colours, shapes, spots, strict=True)),
        (
            ("where-colour", f"where is the {colour} one ?", f"{row_name} {column_name}"),
            ("where-shape", f"where is the {shape} ?", f"{row_name} {column_name}"),
            ("row", f"which row is the {colour} one in ?", row_name),
            ("column", f"which column is the {shape} in ?", column_name),
            ("what", f"what is at row {row_name} column {column_name} ?", f"{colour} {shape}"),
        ),
    )


_DRAW: Final[dict[str, Callable[[np.random.Generator, str], Scene | None]]] = {
    "vqa": _vqa,
    "geometry": _geometry,
    "chart": _chart,
    "ocr": _ocr,
    "grounding": _grounding,
}


def home(image: draw.Image) -> str:
    """The split a picture belongs to: one tenth search, one tenth held_out, the rest train."""
    turn = zlib.crc32(image.tobytes()) % 10
    return {0: "search", 1: "held_out"}.get(turn, "train")


def scene(task: str, split: str, seed: int, index: int) -> Scene:
    """The picture number `index` of a task's split, with all its questions."""
    rng = np.random.default_rng([TASKS.index(task), SPLITS.index(split), seed, index])
    while True:
        drawn = _DRAW[task](rng, split)
        if drawn is not None and home(drawn.image) == split:
            return drawn


def item(task: str, split: str, seed: int, index: int) -> Item:
    """The question number `index` of a task's split; forms take turns, so every form has its equal
    share.
    """
    drawn = scene(task, split, seed, index)
    form, question, answer = drawn.questions[index % len(drawn.questions)]
    return Item(f"{task}-{split}-{index:04d}", task, form, drawn.image, question, answer)


def fingerprint(image: draw.Image) -> str:
    """SHA-256 of the pixels, in hexadecimal."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def png(image: draw.Image) -> bytes:
    """The picture as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def record(of: Item) -> dict[str, Any]:
    """The item as one line of an objective's jsonl file."""
    url = "data:image/png;base64," + base64.b64encode(png(of.image)).decode()
    content = [{"type": "image", "image": url}, {"type": "text", "text": of.question}]
    return {
        "id": of.id,
        "messages": [{"role": "user", "content": content}],
        "answer": of.answer,
    }
