"""Rules on where two or more models' changes overlap: NearSwap, Arcee Fusion, RAM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.task_arithmetic import SCALE, task_vectors
from evomerge.methods.elementwise.ties import WEIGHT
from evomerge.methods.masks import kth_largest, rows
from evomerge.methods.registry import Parameter, register

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 22  # entries at a time in float64: bounds the temporaries to 32 MiB each


@register(
    "nearswap",
    family="elementwise",
    formula="θ = θ₀ + λ (a − θ₀ + clip(b − a, −t, t));  a, b the two experts, or θ₀ and the one",
    source="alchemonaut 2024, model card of QuartetAnemoi-70B-t0.0001: w = clip(t / |a − b|, 0, 1),"
    " θ = (1 − w) a + w b, which is the same; mergekit's nearswap",
    cost="one pass",
    parameters=[
        Parameter("t", "largest step from the first model towards the second", 1e-4, 0.0, 1e-2),
        SCALE,
    ],
    plain=lambda weights: _plain_first(weights),
    max_experts=2,
    ordered=True,  # not ``exact``, although it is: clip would hide an Inf that only a check finds
)
def nearswap(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    t: float,
    scale: float,
) -> torch.Tensor:
    """The second model where it is within ``t`` of the first; elsewhere a step of ``t`` towards it.

    mergekit takes a difference below 1e-6 for 1e-6; this has an effect only where t is below that.
    """
    first, second = _pair(base, experts)
    return base + (first - base + (second - first).clamp(-t, t)) * scale


def _pair(base: torch.Tensor, experts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return (base, experts[0]) if len(experts) == 1 else (experts[0], experts[1])


def _plain_first(weights: tuple[float, ...]) -> dict[str, float | tuple[float, ...]] | None:
    """Without a step it is the first model, scaled."""
    if not any(weights):
        return {"scale": 0.0}
    if len(weights) == 2 and weights[1] == 0:
        return {"t": 0.0, "scale": weights[0]}
    return None


@register(
    "arcee_fusion",
    family="elementwise",
    formula="θ = θ₀ + λ (a − θ₀ + [I ≥ median(I) + s (Q₃(I) − Q₁(I))] ⊙ (b − a)),  "
    "I = |b − a| ⊙ KL(softmax(b) ‖ softmax(a)) by row;  a, b the two experts, or θ₀ and the one",
    source="Arcee 2025, mergekit's arcee_fusion; variant: quantiles of all entries, where mergekit "
    "draws a million at random",
    cost="one pass, softmaxes in float64 and three selections",
    parameters=[
        Parameter("spread", "interquartile ranges above the median to be taken", 1.5, 0.0, 4.0),
        SCALE,
    ],
    max_experts=2,
    ordered=True,
)
def arcee_fusion(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    spread: float,
    scale: float,
) -> torch.Tensor:
    """The first model with the outlying changes of the second: large ones in rows much changed.

    Where more than three quarters of the importances are equal (most entries untouched), the
    threshold is that value, and all changes above or at it are taken.
    """
    first, second = _pair(base, experts)
    scores = importance(first, second)
    low, middle, high = (_quantile(scores, q) for q in (0.25, 0.5, 0.75))
    taken = (second - first) * (scores >= middle + spread * (high - low))
    return base + (first - base + taken) * scale


def importance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """``|b − a|`` times the Kullback-Leibler divergence of its row's softmaxes, float32.

    Rows as in ``masks.rows``; 1e-8 is added to each probability, as published.
    """
    import torch

    a, b = rows(first), rows(second)
    scores = torch.empty_like(a)
    step = max(_CHUNK // max(a.shape[1], 1), 1)
    for start in range(0, a.shape[0], step):
        x, y = a[start : start + step].double(), b[start : start + step].double()
        q, p = x.softmax(dim=1) + 1e-8, y.softmax(dim=1) + 1e-8
        scores[start : start + step] = (y - x).abs() * (p * (p / q).log()).sum(dim=1, keepdim=True)
    return scores.reshape(first.shape)


def _quantile(values: torch.Tensor, q: float) -> float:
    """The value of rank ``floor(q (n − 1))`` from below."""
    return kth_largest(values, values.numel() - math.floor(q * (values.numel() - 1)))


@register(
    "ram",
    family="elementwise",
    formula="θ = θ₀ + λ Σ wᵢ τᵢ ⊙ [|wᵢ τᵢ| > ε] ⊙ ([n = 1] (1 + r min(ρᵢ, α)) + [n > 1] / n),  "
    "n = experts that change an entry,  ρᵢ = shared entries of i / entries of i alone",
    source="Yuan et al. 2026, Behavior Knowledge Merge in Reinforced Agentic Models "
    "(arXiv 2601.13572), RAM+; variant: ρ per tensor, as mergekit's ramplus_tl; r = 0 is RAM",
    cost="two passes",
    parameters=[
        WEIGHT,
        Parameter("r", "strength of the boost of entries that one expert alone changes", 0.1, 0, 1),
        Parameter("alpha", "ceiling of the ratio of shared to own entries", 0.2, 0, 1),
        Parameter("epsilon", "largest change of an entry that counts as none", 1e-5, 0, 1e-3),
        SCALE,
    ],
    plain=lambda weights: (
        {"weight": weights, "epsilon": 0.0, "scale": 1.0}
        if sum(w != 0 for w in weights) <= 1
        else None
    ),
    exact=True,
)
def ram(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    r: float,
    alpha: float,
    epsilon: float,
    scale: float,
) -> torch.Tensor:
    """Shared changes averaged, changes of one expert alone kept and boosted.

    Weights are folded in before it is counted which entries an expert changes, so an expert of
    weight 0 counts nowhere.
    """
    import torch

    deltas = [t * w for t, w in zip(task_vectors(base, experts), weight, strict=True)]
    count = torch.zeros_like(base)
    for delta in deltas:
        count += delta.abs() > epsilon
    alone, together = torch.zeros_like(base), torch.zeros_like(base)
    for delta in deltas:
        changed = delta.abs() > epsilon
        shared, own = changed & (count > 1), changed & (count == 1)
        owned = int(own.sum())
        ratio = min(int(shared.sum()) / owned, alpha) if owned else 0.0
        alone += delta * own * (1 + r * ratio)
        together += delta * shared
    return base + (alone + together / count.clamp(min=1)) * scale
