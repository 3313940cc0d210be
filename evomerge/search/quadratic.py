"""A model of scores over a genome: the sigmoid of a full quadratic, fitted by least squares.

It is the surrogate of MAP (Li et al. 2025, arXiv 2406.07529): ``y ≈ σ(½ cᵀA c + bᵀc + e)`` for each
metric, with its (d+1)(d+2)/2 coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.search.planned import FloatArray

RIDGES = (1.0, 1e-1, 1e-2, 1e-4, 1e-8)
"""Penalties tried on what differs from a constant, from strong to none."""

_MILD = 5e-3
_CLEARLY = 0.5  # left-out errors of nearly free fits are themselves noisy

_STEPS = 12
_MARGIN = 0.005  # scores are kept so far from 0 and 1, where the logit ends


@dataclass(frozen=True)
class Quadratic:
    """A fitted model of one score: of p coefficients, float64, in the order of `features`."""

    coefficients: FloatArray
    low: float
    width: float

    def predict(self, genomes: FloatArray) -> FloatArray:
        """Scores (n,) of genomes (n, d), in the units of the told ones."""
        return self.low + self.width * _sigmoid(features(genomes) @ self.coefficients)

    def gradient(self, genomes: FloatArray) -> FloatArray:
        """By how much the score changes with each gene (n, d)."""
        count, genes = genomes.shape
        x = 2.0 * genomes - 1.0
        linear = np.broadcast_to(self.coefficients[1 : genes + 1], (count, genes))
        slope = linear + x @ self._curvature(genes)
        level = _sigmoid(features(genomes) @ self.coefficients)
        return 2.0 * self.width * (level * (1.0 - level))[:, None] * slope

    def _curvature(self, genes: int) -> FloatArray:
        """The symmetric matrix A of ½ xᵀA x."""
        matrix = np.zeros((genes, genes))
        rows, columns = np.triu_indices(genes)
        matrix[rows, columns] = self.coefficients[genes + 1 :]
        return matrix + matrix.T


def features(genomes: FloatArray) -> FloatArray:
    """``1, x, xᵢxⱼ (i ≤ j)`` of genomes (n, d), shape (n, (d+1)(d+2)/2), with x = 2u − 1."""
    x = 2.0 * genomes - 1.0
    rows, columns = np.triu_indices(x.shape[1])
    return np.hstack([np.ones((len(x), 1)), x, x[:, rows] * x[:, columns]])


def fit(genomes: FloatArray, scores: FloatArray) -> Quadratic:
    """The least squares fit of one score (n,) over genomes (n, d).

    By Gauss-Newton steps in the score itself, from a constant. The published code fits without a
    penalty and so needs more points than coefficients; here the ridge of least leave-one-out error
    is taken (in the linearised model), next to none only where that halves the squared error.
    Scores within [0, 1], such as accuracies, are fitted as they are; others are first put into the
    middle half of it.
    """
    low, width = _range(scores)
    target = np.clip((scores - low) / width, _MARGIN, 1.0 - _MARGIN)
    phi = features(genomes)
    best, least = _fit(phi, target, RIDGES[0])
    for ridge in RIDGES[1:]:
        found, error = _fit(phi, target, ridge)
        if error < least * (_CLEARLY if ridge < _MILD else 1.0):
            best, least = found, error
    return Quadratic(best, low, width)


def _range(scores: FloatArray) -> tuple[float, float]:
    low, high = float(scores.min()), float(scores.max())
    if low >= 0.0 and high <= 1.0:
        return 0.0, 1.0
    margin = 0.5 * (high - low) or 1.0
    return low - margin, high - low + 2.0 * margin


def _fit(phi: FloatArray, target: FloatArray, ridge: float) -> tuple[FloatArray, float]:
    """Coefficients and mean squared leave-one-out error."""
    middle = float(np.mean(target))
    constant = np.zeros(phi.shape[1])
    constant[0] = np.log(middle / (1.0 - middle))
    change, loss = np.zeros_like(constant), np.inf
    for _ in range(_STEPS):
        slope, residual = _linearised(phi, target, constant + change)
        jacobian = slope[:, None] * phi
        wanted = _solve(jacobian, residual + jacobian @ change, ridge)
        before, step = loss, 1.0
        while step > 1e-3:
            moved = change + step * (wanted - change)
            left = target - _sigmoid(phi @ (constant + moved))
            found = float(left @ left + ridge * moved @ moved)
            if found < loss:
                change, loss = moved, found
                break
            step /= 2.0
        if loss > before * (1.0 - 1e-4):
            break
    slope, residual = _linearised(phi, target, constant + change)
    jacobian = slope[:, None] * phi
    wanted = _solve(jacobian, residual + jacobian @ change, ridge)
    out = (residual + jacobian @ (change - wanted)) / _left_out(jacobian, ridge)
    return constant + change, float(np.mean(out**2))


def _linearised(
    phi: FloatArray, target: FloatArray, coefficients: FloatArray
) -> tuple[FloatArray, FloatArray]:
    level = _sigmoid(phi @ coefficients)
    return level * (1.0 - level), target - level


def _solve(jacobian: FloatArray, target: FloatArray, ridge: float) -> FloatArray:
    """The ridge solution, by the smaller of the two normal equations."""
    points, count = jacobian.shape
    if count < points:
        normal = jacobian.T @ jacobian + ridge * np.eye(count)
        return np.asarray(np.linalg.solve(normal, jacobian.T @ target), dtype=np.float64)
    dual = jacobian @ jacobian.T + ridge * np.eye(points)
    return np.asarray(jacobian.T @ np.linalg.solve(dual, target))


def _left_out(jacobian: FloatArray, ridge: float) -> FloatArray:
    """One less the leverage of each point: what turns a residual into its leave-one-out error."""
    points, count = jacobian.shape
    if count < points:
        normal = jacobian.T @ jacobian + ridge * np.eye(count)
        leverage = (jacobian * np.linalg.solve(normal, jacobian.T).T).sum(axis=1)
        return np.asarray(np.maximum(1.0 - leverage, 1e-9))
    dual = jacobian @ jacobian.T + ridge * np.eye(points)
    return np.asarray(np.maximum(ridge * np.diag(np.linalg.inv(dual)), 1e-12))


def _sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -500.0, 500.0))))
