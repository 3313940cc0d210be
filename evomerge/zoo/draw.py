"""Pictures of 28 x 28 pixels, drawn with numpy alone.

A canvas is a float32 array of shape (28, 28, 3) with values in 0..255; `finish` rounds it to uint8.
Sizes and places are in pixels, rows before columns.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SIZE: Final = 28
Canvas = NDArray[np.float32]
Image = NDArray[np.uint8]

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (60, 90, 250),
    "yellow": (240, 220, 40),
    "purple": (190, 60, 220),
    "cyan": (50, 220, 230),
}
SHAPES: Final = ("circle", "square", "triangle", "cross")

# A 5 x 7 face for the printed digits, one row of bits for each line.
_FACE: Final = {
    0: (14, 17, 19, 21, 25, 17, 14),
    1: (4, 12, 4, 4, 4, 4, 14),
    2: (14, 17, 1, 2, 4, 8, 31),
    3: (31, 2, 4, 2, 1, 17, 14),
    4: (2, 6, 10, 18, 31, 2, 2),
    5: (31, 16, 30, 1, 1, 17, 14),
    6: (6, 8, 16, 30, 17, 17, 14),
    7: (31, 1, 2, 4, 8, 8, 8),
    8: (14, 17, 17, 14, 17, 17, 14),
    9: (14, 17, 17, 15, 1, 2, 12),
}


def blank(rng: np.random.Generator) -> Canvas:
    """A dark, slightly tinted background."""
    canvas = np.empty((SIZE, SIZE, 3), np.float32)
    canvas[:] = rng.uniform(0, 40, 3)
    return canvas


def ink(name: str, rng: np.random.Generator, spread: float = 14.0) -> NDArray[np.float32]:
    """The colour called `name`, a little off its exact value; shape (3,)."""
    tint = np.asarray(COLOURS[name], np.float32) + rng.uniform(-spread, spread, 3)
    return np.asarray(np.clip(tint, 0, 255), np.float32)


def finish(canvas: Canvas) -> Image:
    """Round to whole pixel values; shape and order stay."""
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


@cache
def shape_mask(shape: str, size: int) -> NDArray[np.float32]:
    """A `size` x `size` coverage mask (0..1) of the shape, four by four samples a pixel."""
    grid = (np.arange(size * 4) + 0.5) / (size * 4) * 2 - 1
    y, x = np.meshgrid(grid, grid, indexing="ij")
    if shape == "circle":
        inside = x * x + y * y <= 1
    elif shape == "square":
        inside = np.maximum(abs(x), abs(y)) <= 0.9
    elif shape == "triangle":
        inside = abs(x) <= (y + 1) / 2
    elif shape == "cross":
        inside = (np.minimum(abs(x), abs(y)) <= 0.26) & (np.maximum(abs(x), abs(y)) <= 1)
    else:
        raise ValueError(f"unknown shape {shape!r}, expected one of {SHAPES}")
    mask: NDArray[np.float32] = inside.reshape(size, 4, size, 4).mean((1, 3)).astype(np.float32)
    return mask


def stamp(
    canvas: Canvas, mask: NDArray[np.float32], row: int, column: int, colour: NDArray[np.float32]
) -> None:
    """Blend `colour` into the canvas where the mask covers it; (row, column) is the top left
    pixel.
    """
    height, width = mask.shape
    patch = canvas[row : row + height, column : column + width]
    patch += mask[:, :, None] * (colour - patch)


def bar(canvas: Canvas, rows: slice, columns: slice, colour: NDArray[np.float32]) -> None:
    """Fill a rectangle."""
    canvas[rows, columns] = colour


@cache
def _resampler(source: int, target: int) -> NDArray[np.float32]:
    """Matrix (target, source) of linear interpolation between pixel centres."""
    places = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.minimum(places.astype(int), source - 2)
    matrix = np.zeros((target, source), np.float32)
    matrix[np.arange(target), low] = 1 - (places - low)
    matrix[np.arange(target), low + 1] += places - low
    return matrix


def resize(mask: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Linear resize of a 2-D mask."""
    resized = _resampler(mask.shape[0], height) @ mask @ _resampler(mask.shape[1], width).T
    return resized.astype(np.float32)


@cache
def printed_digit(digit: int) -> NDArray[np.float32]:
    """The digit in the 5 x 7 face: a mask of shape (7, 5)."""
    rows = [[row >> (4 - bit) & 1 for bit in range(5)] for row in _FACE[digit]]
    return np.asarray(rows, np.float32)


@cache
def _handwriting() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        from evomerge.errors import MissingDependency

        raise MissingDependency(
            "drawing the zoo's OCR items needs scikit-learn's digits: pip install 'evomerge[zoo]'"
        ) from error
    digits: Any = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)


@cache
def handwritten(split: str) -> tuple[NDArray[np.float32], tuple[NDArray[np.int64], ...]]:
    """The 8 x 8 digits of one split and, for each digit 0 to 9, the places of its images.

    Neighbouring images are often by one writer: runs of 30 are dealt out, so that the splits share
    few runs of one hand; writers themselves may be in several splits, images are not.
    """
    images, labels = _handwriting()
    turn = np.arange(len(labels)) // 30 % 10
    chosen = {"search": turn == 3, "held_out": turn == 7}.get(split, (turn != 3) & (turn != 7))
    return images, tuple(np.flatnonzero(chosen & (labels == digit)) for digit in range(10))
