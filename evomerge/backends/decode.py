"""Greedy decoding and likelihoods of a left-padded batch, without the overhead of `generate`."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from evomerge.errors import CandidateError

Batch = Mapping[str, torch.Tensor]


class Clock:
    """Seconds by phase: each lap adds the time since the one before to the phase that it names."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str | None) -> None:
        """Ends a phase; None where the time belongs to none."""
        now = time.perf_counter()
        if phase is not None:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


Stopper = Callable[[int, Sequence[int]], bool]
"""Whether a row, by its number, ends with these tokens of its answer so far."""


@torch.inference_mode()
def greedy(
    model: Any,
    batch: Batch,
    limits: Sequence[int],
    ends: Sequence[int],
    pad: int,
    stopped: Stopper | None = None,
    clock: Clock | None = None,
) -> list[list[int]]:
    """Tokens of each row up to and with an end token, at most `limits[row]` of them.

    The likeliest token at each step, without penalties or processors of the generation config. A
    row also ends where `stopped` says so. `clock` learns what prefill and decoding took.

    Raises:
        CandidateError: a logit is NaN or +inf.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    mask, positions = batch["attention_mask"], batch.get("position_ids")
    rows = len(limits)
    limit = torch.tensor(limits, device=mask.device)
    end = torch.tensor(ends, device=mask.device)
    finished = torch.zeros(rows, dtype=torch.bool, device=mask.device)
    finite = torch.ones((), dtype=torch.bool, device=mask.device)
    steps: list[torch.Tensor] = []
    inputs: dict[str, torch.Tensor] = dict(batch)
    options = {"past_key_values": cache, "use_cache": True, **last_logits(model, 1)}
    while True:
        best, token = model(**inputs, **options).logits[:, -1].max(dim=-1)
        finite &= (best.isfinite() | finished).all()
        token = token.masked_fill(finished, pad)
        steps.append(token)
        finished = finished | torch.isin(token, end) | (limit <= len(steps))
        if stopped is not None:
            for row in _stopping(steps, finished, stopped):
                finished[row], limit[row] = True, len(steps)
        ended = bool(finished.all())  # waits for the device
        if clock is not None:
            clock.lap("prefill" if len(steps) == 1 else "decode")
        if ended:
            break
        mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
        inputs = {"input_ids": token[:, None], "attention_mask": mask}
        if positions is not None:
            positions = positions[..., -1:] + 1
            inputs["position_ids"] = positions
    if not bool(finite):
        raise CandidateError("the model's logits are not finite; the merged model is broken")
    made = torch.stack(steps, 1).tolist()
    return [_cut(row, n, ends) for row, n in zip(made, limit.tolist(), strict=True)]


@torch.inference_mode()
def loglikelihoods(model: Any, batch: Batch, lengths: Sequence[int]) -> list[tuple[float, bool]]:
    """Of the last `lengths[row]` tokens of each row, given those before: the natural-log
    probability, and whether each of them was the likeliest.

    One teacher-forced pass over all tokens but the last; log-softmax in float32, sums in float64.

    Raises:
        CandidateError: a logit is NaN or +inf.
    """
    sums, likeliest = followed_loglikelihoods(model, batch, lengths)
    return list(zip(sums.tolist(), likeliest, strict=True))


def followed_loglikelihoods(
    model: Any, batch: Batch, lengths: Sequence[int]
) -> tuple[torch.Tensor, list[bool]]:
    """The same as one tensor, (rows,) float64, that autograd can follow to the model's weights."""
    kept, tokens = max(lengths), batch["input_ids"]
    inputs = {
        name: t[..., :-1] if name == "position_ids" or t.shape == tokens.shape else t
        for name, t in batch.items()
    }
    logits = model(**inputs, use_cache=False, **last_logits(model, kept)).logits[:, -kept:]
    sums, likeliest = [], []
    for row, length in enumerate(lengths):
        answer = tokens[row, -length:]
        scores = logits[row, -length:].float().log_softmax(dim=-1)
        sums.append(scores.gather(-1, answer[:, None]).double().sum())
        likeliest.append((scores.argmax(dim=-1) == answer).all())
    result = torch.stack(sums)
    if not all(-float("inf") < value <= 0 for value in result.tolist()):
        raise CandidateError("log-likelihoods are not finite; the merged model is broken")
    return result, torch.stack(likeliest).tolist()


def last_logits(model: Any, count: int) -> dict[str, int]:
    """The model's option to compute the logits of the last ``count`` positions alone."""
    accepted = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": count} if accepted else {}


def _stopping(steps: Sequence[torch.Tensor], finished: torch.Tensor, stopped: Stopper) -> list[int]:
    """The rows that go on, but end with what `stopped` waits for."""
    made = torch.stack(list(steps), 1).tolist()
    return [
        row for row, over in enumerate(finished.tolist()) if not over and stopped(row, made[row])
    ]


def _cut(row: list[int], limit: int, ends: Sequence[int]) -> list[int]:
    row = row[:limit]
    last = next((i for i, token in enumerate(row) if token in ends), limit)
    return row[: last + 1]
