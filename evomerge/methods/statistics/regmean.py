"""RegMean and RegMean++: regression of the merged layer's outputs on every expert's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.task_arithmetic import SCALE
from evomerge.methods.registry import Parameter, register
from evomerge.methods.statistics.reading import alone, of_experts
from evomerge.methods.statistics.regression import by_rows, combine, divide, normal

if TYPE_CHECKING:
    import torch

WEIGHT = Parameter(
    "weight", "share of each expert in the merge; only ratios count", 1.0, 0.0, 1.0, per_expert=True
)
_SHRINK = "factor on the Grams' off-diagonal entries; 0 looks at each input channel by itself"
_FORMULA = (
    "W = (Σ wᵢ Ĝᵢ)⁻¹ Σ wᵢ Ĝᵢ Wᵢ (in × out), Ĝᵢ = a Gᵢ + (1 − a) diag Gᵢ;  θ = θ₀ + λ (W − θ₀)"
)
_COST = "N products and a Cholesky solve of the layer's input width"


def _off_diagonal(default: float) -> Parameter:
    return Parameter("off_diagonal", _SHRINK, default, 0.0, 1.0)


@register(
    "regmean",
    family="statistics",
    formula=_FORMULA,
    source="Jin et al. 2023, Dataless Knowledge Fusion by Merging Weights of Language Models "
    "(arXiv 2212.09849): RegMean's closed form, with its factor on the Grams' non-diagonal items",
    cost=_COST,
    parameters=[WEIGHT, _off_diagonal(0.9), SCALE],
    plain=alone,
    needs="activations",
    matrices=True,
    shares=True,
    statistics=("gram",),
)
def regmean(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    off_diagonal: float,
    scale: float,
) -> torch.Tensor:
    """The linear layer whose outputs are nearest to each expert's, on that expert's own inputs.

    ``gram``: (n, n) float32 an expert, E[x xᵀ] over tokens of the layer's inputs in that expert.
    Variant: Grams are means over tokens, as in the published code, so experts count by weight and
    not by their number of tokens. Directions that no input uses leave the regression open (the
    published codes invert and fail, or answer with rounding noise): there the merge is the weighted
    mean of the experts, which is also what tensors without Grams get. So equal experts give that
    expert, and a single one itself, whatever the Grams.
    """
    return _regression(base, experts, context, "gram", weight, off_diagonal, scale)


@register(
    "regmean_plus_plus",
    family="statistics",
    formula=_FORMULA + ";  Gᵢ from inputs that the merged blocks before it make",
    source="Nguyen et al. 2025, RegMean++ (arXiv 2508.03121): inputs collected block after block "
    "in the model merged so far",
    cost=_COST,
    parameters=[WEIGHT, _off_diagonal(0.95), SCALE],
    plain=alone,
    needs="activations",
    matrices=True,
    shares=True,
    statistics=("merged_gram",),
)
def regmean_plus_plus(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    off_diagonal: float,
    scale: float,
) -> torch.Tensor:
    """RegMean on the inputs that each layer will see behind already merged blocks.

    ``merged_gram``: (n, n) float32 an expert, E[x xᵀ] of the layer's inputs when that expert's
    items come through the merged blocks before it. They belong to the values with which those
    blocks were merged: with others the regression is for slightly other inputs. The default of
    ``off_diagonal`` is that of the published configuration; null directions as in ``regmean``.
    """
    return _regression(base, experts, context, "merged_gram", weight, off_diagonal, scale)


def _regression(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    kind: str,
    weight: tuple[float, ...],
    off_diagonal: float,
    scale: float,
) -> torch.Tensor:
    """``T = τ̄ + (Σ wᵢ (τᵢ − τ̄) Ĝᵢ) (Σ wᵢ Ĝᵢ)⁺`` with the weighted mean ``τ̄``."""
    total = sum(weight)
    if total == 0 or scale == 0:
        return base.clone()
    width = base.shape[1]
    grams = of_experts(context, kind, (width, width))
    shares = [w / total for w in weight]
    sided = by_rows(base, experts, context)
    mean = combine(sided.deltas, shares)
    residual, gram = normal(
        (delta - mean for delta in sided.deltas), (shrunk(g, off_diagonal) for g in grams), shares
    )
    return (base.double() + sided.expand(mean + divide(residual, gram)) * scale).float()


def shrunk(gram: torch.Tensor, off_diagonal: float) -> torch.Tensor:
    """``a G + (1 − a) diag G``, float64."""
    import torch

    wide = gram.double()
    return wide * off_diagonal + torch.diag(wide.diagonal() * (1 - off_diagonal))
