"""From several scores to one: a declared choice, for algorithms that take a single objective."""

from __future__ import annotations

from collections.abc import Sequence


def weighted_sum(scores: Sequence[float], weights: Sequence[float]) -> float:
    """Σ wᵢ sᵢ, to be maximised; reaches only the convex part of a front."""
    return sum(w * s for w, s in zip(weights, scores, strict=True))


def chebyshev(
    scores: Sequence[float],
    weights: Sequence[float],
    ideal: Sequence[float],
    augmentation: float = 0.05,
) -> float:
    """−(max wᵢ (zᵢ − sᵢ) + ρ Σ wᵢ (zᵢ − sᵢ)) for the ideal point z, to be maximised.

    The augmented weighted Chebyshev distance (Steuer and Choo 1983, doi:10.1007/BF02591870; ρ as in
    ParEGO, Knowles 2006, doi:10.1109/TEVC.2005.851274): with positive weights its optima are Pareto
    optimal, and concave parts of the front are reached too.
    """
    gaps = [w * (z - s) for w, z, s in zip(weights, ideal, scores, strict=True)]
    return -(max(gaps) + augmentation * sum(gaps))
