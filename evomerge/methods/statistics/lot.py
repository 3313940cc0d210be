"""LOT Merging: least squares on the features that each task's vector makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.methods.context import Context
from evomerge.methods.elementwise.task_arithmetic import SCALE
from evomerge.methods.registry import Parameter, register
from evomerge.methods.statistics.reading import of_experts
from evomerge.methods.statistics.regmean import WEIGHT
from evomerge.methods.statistics.regression import by_rows, divide, normal

if TYPE_CHECKING:
    import torch

RIDGE = Parameter(
    "ridge",
    "added to the diagonal, in mean eigenvalues of Σ wᵢ Gᵢ; draws weakly used directions to the "
    "base. Search it on a logarithmic scale from 1e-4",
    0.0,
    0.0,
    1.0,
)


@register(
    "lot",
    family="statistics",
    formula="θ = θ₀ + λ T,  T = (Σ wᵢ Gᵢ + ρ ḡ I)⁺ Σ wᵢ Gᵢ τᵢ (in × out),  ḡ = tr(Σ wᵢ Gᵢ) / n",
    source="Sun et al. 2025, Towards Minimizing Feature Drift in Model Merging (LOT Merging, "
    "arXiv 2505.23859), equation 9; the ridge ρ is an addition",
    cost="N products and a Cholesky solve of the layer's input width; an eigendecomposition where "
    "the Grams are singular",
    parameters=[WEIGHT, RIDGE, SCALE],
    needs="activations",
    matrices=True,
    shares=True,
    statistics=("gram",),
)
def lot(
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    context: Context,
    *,
    weight: tuple[float, ...],
    ridge: float,
    scale: float,
) -> torch.Tensor:
    """The task vector with the least drift of features from what each expert's vector adds.

    ``gram``: (n, n) float32 an expert, E[x xᵀ] over tokens of the layer's inputs in that expert.
    Where ``Σ wᵢ Gᵢ`` has full rank this is RegMean without shrinking; directions that no input uses
    stay at the base (RegMean averages them), so a single expert comes back only as far as its
    inputs see it. Variant: the paper's closed forms for scales and shifts of norms are left out;
    those tensors follow the common policy, whose mean is the paper's rule for shifts. The paper
    sets λ to 1.2 and 1.5 for two of its models.
    """
    total = sum(weight)
    if total == 0 or scale == 0:
        return base.clone()
    width = base.shape[1]
    grams = of_experts(context, "gram", (width, width))
    shares = [w / total for w in weight]
    sided = by_rows(base, experts, context)
    numerator, gram = normal(sided.deltas, grams, shares)
    gram.diagonal().add_(ridge * float(gram.diagonal().mean()))
    return (base.double() + sided.expand(divide(numerator, gram)) * scale).float()
