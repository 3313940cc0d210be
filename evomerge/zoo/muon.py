"""Muon: momentum whose step is made orthogonal (K. Jordan et al., 2024), with AdamW-like step
sizes.

Matrices of one shape are handled as one batch and in float32, which on a CPU is quicker than
PyTorch's own (one matrix at a time, in bfloat16) and the same on machines with and without bfloat16
instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(batch: Tensor, iterations: int = 5) -> Tensor:
    """Newton-Schulz: matrices (n, rows, columns) to nearby ones whose singular values are all about
    1.
    """
    a, b, c = _COEFFICIENTS
    tall = batch.shape[1] > batch.shape[2]
    x = batch.transpose(1, 2) if tall else batch
    norm: Tensor = x.norm(dim=(1, 2), keepdim=True)
    x = x / norm.clamp_min(1e-7)
    for _ in range(iterations):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for two-dimensional parameters; `lr` is of AdamW's size (steps are scaled to match its
    RMS).
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand; `closure` is not used."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[Tensor]] = {}
            for one in group["params"]:
                if one.grad is not None:
                    shapes.setdefault((min(one.shape), max(one.shape)), []).append(one)
            for (_, longest), alike in shapes.items():
                self._update(alike, group, 0.2 * longest**0.5)

    def _update(self, alike: list[Tensor], group: dict[str, Any], scale: float) -> None:
        wanted = []
        for one in alike:
            buffer = self.state[one].setdefault("momentum", torch.zeros_like(one))
            buffer.lerp_(one.grad, 1 - group["momentum"])
            step = torch.lerp(torch.as_tensor(one.grad), buffer, group["momentum"])
            wanted.append(step.T if step.shape[0] > step.shape[1] else step)
        for one, step in zip(alike, orthogonal(torch.stack(wanted)), strict=True):
            one.mul_(1 - group["lr"] * group["decay"])
            one.add_(step.T if one.shape[0] > one.shape[1] else step, alpha=-group["lr"] * scale)
