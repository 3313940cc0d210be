"""Training batches: pictures as patches, and two question-and-answer sequences about each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.zoo import items, network, words

DESCRIBE = "describe"
TURNS = 2  # sequences for each picture


@dataclass(frozen=True)
class Batch:
    """`pixels` (n, 16, 147) of n pictures; `tokens` and `answers` (TURNS * n, length), picture by
    picture.
    """

    pixels: Tensor
    tokens: Tensor
    answers: Tensor


Shares = Mapping[str, Mapping[str, float]]
"""For each task, how often each question form (or DESCRIBE) is asked."""


def sequence(question: str, answer: str) -> tuple[list[int], int]:
    """Token numbers of a whole conversation and where its answer begins."""
    asked = words.prompt(question, network.IMAGE_TOKENS)
    return asked + words.encode([*answer.split(), words.END]), len(asked)


def pack(sequences: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    """Right-padded tokens (n, length) and the mask of the answers' tokens, their end included."""
    length = max(len(tokens) for tokens, _ in sequences)
    padded = torch.full((len(sequences), length), words.IDS[words.PAD])
    answers = torch.zeros((len(sequences), length), dtype=torch.bool)
    for row, (tokens, start) in enumerate(sequences):
        padded[row, : len(tokens)] = torch.tensor(tokens)
        answers[row, start : len(tokens)] = True
    return padded, answers


def _turns(
    scene: items.Scene, forms: Mapping[str, float], rng: np.random.Generator
) -> list[tuple[list[int], int]]:
    asked = {form: (question, answer) for form, question, answer in scene.questions}
    asked[DESCRIBE] = ("describe .", scene.description)
    names = [form for form, share in forms.items() if share > 0]
    weights = np.asarray([forms[form] for form in names])
    chosen = rng.choice(len(names), TURNS, replace=False, p=weights / weights.sum())
    return [sequence(*asked[names[i]]) for i in chosen]


def draw_batch(
    shares: Shares, tasks: Mapping[str, float], pictures: int, seed: int, step: int
) -> Batch:
    """The batch of one training step: `pictures` new train pictures, tasks in the given
    proportion.
    """
    rng = np.random.default_rng([seed, step])
    names = list(tasks)
    weights = np.asarray([tasks[name] for name in names])
    # evenly spread, so that every batch has its share of each task
    spread = (np.arange(pictures) + rng.random()) / pictures * weights.sum()
    chosen = np.searchsorted(np.cumsum(weights), spread)
    images, sequences = [], []
    for place, task in enumerate(names[i] for i in chosen):
        scene = items.scene(task, "train", seed, step * pictures + place)
        images.append(scene.image)
        sequences += _turns(scene, shares[task], rng)
    tokens, answers = pack(sequences)
    return Batch(torch.from_numpy(network.patches(np.stack(images))), tokens, answers)
