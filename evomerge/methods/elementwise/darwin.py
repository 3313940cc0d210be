"""Darwin: two parents, their ratio in each tensor from 14 genes and from a diagnosis of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.dare import drop_and_rescale
from evomerge.methods.elementwise.linear import weighted_sum
from evomerge.methods.elementwise.task_arithmetic import task_vectors
from evomerge.methods.registry import Parameter, register

if TYPE_CHECKING:
    import torch

BLOCKS = 6
_CHUNK = 1 << 20


def _ratio(name: str, help: str) -> Parameter:
    return Parameter(name, help, 0.5, 0.0, 1.0)


@register(
    "darwin",
    family="elementwise",
    formula="θ = θ₀ + (1−r) m_A ⊙ τ_A / ρ_A + r m_B ⊙ τ_B / ρ_B,  m ~ Bernoulli(ρ),  "
    "r = (1−λ) r' + λ/2,  r' = t M_B/(M_A + M_B) + (1−t) mean(γ, α of the kind, r of the depth),  "
    "M = 0.4 H + 0.3 σ/(1+σ) + 0.3 min(1, ‖θ‖/√n)",
    source="Kim et al. 2026, Darwin Family (arXiv 2605.14386), its 14 genes and its trust in "
    "diagnostics; the weights of M are those of a re-implementation; variant (our reading): "
    "the genes' ratio is the plain mean of the three, ρ drops entries as DARE does, λ pulls "
    "towards the average, no probe of activations; with ρ = 1 it is (1−r) θ_A + r θ_B as published",
    cost="one pass; the diagnosis takes two more, once",
    parameters=[
        _ratio("ratio", "γ, the share of the second parent everywhere"),
        _ratio("attention", "α_attn, its share in attention"),
        _ratio("mlp", "α_ffn, its share in MLPs"),
        _ratio("embedding", "α_emb, its share in embeddings and lm_head"),
        Parameter(
            "density",
            "ρ, share of a parent's entries that is kept",
            1.0,
            0.05,
            1.0,
            per_expert=True,
        ),
        *(
            _ratio(f"block{k}", f"r{k}, its share in part {k} of {BLOCKS} of the depth")
            for k in range(BLOCKS)
        ),
        Parameter("trust", "τ, weight of the diagnosis against the genes", 0.4, 0.0, 1.0),
        Parameter("shrink", "λ, how far every ratio is pulled towards a half", 0.0, 0.0, 1.0),
    ],
    plain=lambda weights: plain_darwin(weights),
    min_experts=2,
    max_experts=2,
    ordered=True,
)
def darwin(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    ratio: float,
    attention: float,
    mlp: float,
    embedding: float,
    density: tuple[float, ...],
    block0: float,
    block1: float,
    block2: float,
    block3: float,
    block4: float,
    block5: float,
    trust: float,
    shrink: float,
) -> torch.Tensor:
    """Two parents mixed by 14 genes and by a diagnosis of their weights.

    The first expert is parent A, at ratio 0, the second B. The diagnosis M of a parent's tensor
    weighs the entropy H of its magnitudes (1 if all are equal), their standard deviation and their
    root mean square. Half of the published one compares activations under reasoning prompts and
    generic ones, which `evomerge calibrate` does not collect: this is the static half. Experts of
    one base differ little in it, so that the diagnosis is close to a half and trust pulls there.
    """
    found: tuple[float, ...] = context.once(
        "diagnosis", None, lambda: tuple(diagnosis(expert) for expert in experts)
    )
    total = sum(found)
    advised = found[1] / total if total > 0 else 0.5
    kinds = {"attention": attention, "mlp": mlp, "embedding": embedding, "head": embedding}
    parts = (block0, block1, block2, block3, block4, block5)
    mixed = trust * advised + (1 - trust) * genes_ratio(ratio, kinds, parts, context)
    r = (1 - shrink) * mixed + shrink * 0.5
    dropped = drop_and_rescale(task_vectors(base, experts), density, context)
    return base + weighted_sum(dropped, [1 - r, r])


def genes_ratio(
    ratio: float, kinds: Mapping[str, float], parts: Sequence[float], context: Context
) -> float:
    """The mean of the genes that speak of this tensor: of all, of its module kind, of its depth."""
    heard = [ratio]
    if context.module in kinds:
        heard.append(kinds[context.module])
    if context.block is not None:
        part = context.block * len(parts) // max(context.blocks, 1)
        heard.append(parts[min(part, len(parts) - 1)])
    return sum(heard) / len(heard)


def diagnosis(weights: torch.Tensor) -> float:
    """``0.4 H + 0.3 σ/(1+σ) + 0.3 min(1, ‖θ‖/√n)``, in float64; 0 for a tensor of zeros.

    H is the Shannon entropy of the shares ``|θ| / Σ|θ|``, over that of n equal shares.
    """
    import torch

    flat, count = weights.flatten(), weights.numel()
    sums: list[list[float]] = []
    for start in range(0, count, _CHUNK):
        part = flat[start : start + _CHUNK].double()
        size = part.abs()
        terms = (size, torch.xlogy(size, size), part, part * part)
        sums.append([float(term.sum()) for term in terms])
    mass, logs, total, squares = (math.fsum(column) for column in zip(*sums, strict=True))
    if mass == 0:
        return 0.0
    entropy = (math.log(mass) - logs / mass) / math.log(count) if count > 1 else 1.0
    spread = math.sqrt(max(squares / count - (total / count) ** 2, 0.0))
    return 0.4 * entropy + 0.3 * spread / (1 + spread) + 0.3 * min(1.0, math.sqrt(squares / count))


def plain_darwin(weights: tuple[float, ...]) -> dict[str, float | tuple[float, ...]] | None:
    """Every mean of the two: all ratios the same, no trust, nothing dropped."""
    if abs(sum(weights) - 1) > 1e-12 or min(weights) < 0:
        return None
    genes = ("ratio", "attention", "mlp", "embedding", *(f"block{k}" for k in range(BLOCKS)))
    shares: dict[str, float | tuple[float, ...]] = dict.fromkeys(genes, weights[1])
    return shares | {"density": 1.0, "trust": 0.0, "shrink": 0.0}
