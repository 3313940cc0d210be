"""Exact match of greedy answers on a task's items, by a batched decode without a cache.

The answers equal those of transformers' `generate` (a test says so); on models this small it is far
quicker.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from evomerge.zoo import items, network, words

LONGEST = 4  # tokens of an answer


@cache
def questions(task: str, split: str, count: int, seed: int = 0) -> tuple[items.Item, ...]:
    """The first `count` items of a task's split."""
    return tuple(items.item(task, split, seed, index) for index in range(count))


@torch.inference_mode()
def answers(model: Any, asked: Sequence[items.Item], longest: int = LONGEST) -> list[str]:
    """The model's greedy answer to each item, words joined by spaces."""
    pixels = torch.from_numpy(network.patches(np.stack([one.image for one in asked])))
    weight = model.get_input_embeddings().weight
    features = network.see(model, pixels.to(weight.dtype))
    rows = [words.prompt(one.question, network.IMAGE_TOKENS) for one in asked]
    ends = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(ends.max()) + longest), words.IDS[words.PAD])
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    every, done = torch.arange(len(rows)), torch.zeros(len(rows), dtype=torch.bool)
    said: list[list[str]] = [[] for _ in rows]
    for _ in range(longest):
        hidden = network.think(model, features, tokens[:, : int(ends.max())])
        best = F.linear(hidden[every, ends - 1], weight).argmax(-1)
        tokens[every, ends] = best
        ends = ends + 1
        done |= best == words.IDS[words.END]
        for place in torch.flatten((~done).nonzero()).tolist():
            said[place].append(words.VOCABULARY[int(best[place])])
        if bool(done.all()):
            break
    return [" ".join(spoken) for spoken in said]


def matches(model: Any, asked: Sequence[items.Item], batch: int = 200) -> list[bool]:
    """For each item, whether the answer is the right one, word for word."""
    right: list[bool] = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        right += [said == one.answer for said, one in zip(answers(model, part), part, strict=True)]
    return right


def accuracy(model: Any, task: str, split: str, count: int) -> float:
    """Share of the first `count` items of the split that the model answers exactly."""
    return float(np.mean(matches(model, questions(task, split, count))))
