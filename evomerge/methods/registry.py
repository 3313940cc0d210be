"""The registry of merge methods: a decorated pure function is a method that recipes can name.

A method is ``function(base, experts, context, **values) -> merged``:

- ``base``: float32 tensor, the base model's weights of one tensor;
- ``experts``: a sequence of float32 tensors of the same shape, the experts' full weights. Each is
  read when it is asked for: a method that works on ``context.factors`` never forms them;
- ``context``: which tensor this is, the seed, the experts' names, and statistics (see ``context``);
- ``values``: the declared parameters. One declared ``per_expert`` arrives as a tuple of floats in
  the order of ``experts``; the others arrive as one number (a ``switch`` as a bool, an ``integer``
  as an int).

It returns a float32 tensor of the same shape and changes none of its inputs. The caller rounds once
to the output dtype. Callers go through ``Method.merge``, which holds what is common to all methods.
Nothing here imports torch, so that methods can be listed and checked quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from evomerge.documents import did_you_mean
from evomerge.errors import CandidateError, ConfigError
from evomerge.methods.context import Context
from evomerge.methods.numerics import one_thread

if TYPE_CHECKING:
    import torch

Plain = Callable[[tuple[float, ...]], Mapping[str, float | tuple[float, ...]] | None]
Needs = Literal["data-free", "activations", "gradients", "optimiser states"]
FAMILIES = {
    "elementwise": "each entry of a tensor by itself, after at most a ranking of the entries",
    "spherical": "along arcs: of weights as vectors, or of rotations of matrices",
    "spectral": "by the singular values and vectors of the task vectors",
    "optimised": "by minimising the interference between task vectors, without data",
    "statistics": "by what was measured of each expert (see `evomerge calibrate`)",
    "learned": "coefficients learned by gradients from a few items (see `evomerge learn`)",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method: its default, the range a search takes if none is given, its help.

    ``switch`` marks a yes/no choice that is declared, never searched; ``integer`` a whole number.
    """

    name: str
    help: str
    default: float
    low: float
    high: float
    per_expert: bool = False
    switch: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Method:
    """A registered method.

    ``ordered`` says that the order of experts has a meaning (SLERP goes from the first to the
    second); for all others the caller passes the experts sorted by name, so that the order in
    which a user lists them cannot change a single bit.

    ``plain(weights)`` gives the parameters with which the method is the plain sum
    ``θ₀ + Σ wᵢ τᵢ``, or None where it cannot be. It tells a search where in its space the base,
    the experts, their average and task arithmetic lie.

    ``matrices`` says that the formula is for matrices; other tensors then follow the policy of
    ``average``. ``shares`` says that only the ratios of the experts' weights matter. ``statistics``
    and ``base_statistics`` are the kinds it needs of every expert and of the base: a tensor that
    lacks one follows the policy too. ``exact`` says that it is made of elementwise operations,
    exact selections and sums in a fixed order, so that it may use all threads. ``by_factors`` says
    that LoRA experts are merged factor by factor, so that the factors are no mere short cut.
    ``smooth`` says that the merged tensor is differentiable in ``weight``, and that autograd can
    follow it, also where a weight is 0. ``extra``, called like the function, gives what a method
    makes beside the merged tensor, such as task masks.
    """

    name: str
    family: str
    summary: str
    formula: str
    source: str
    cost: str
    parameters: tuple[Parameter, ...]
    function: Callable[..., torch.Tensor]
    plain: Plain
    needs: Needs = "data-free"
    min_experts: int = 1
    max_experts: int | None = None
    ordered: bool = False
    matrices: bool = False
    shares: bool = False
    exact: bool = False
    by_factors: bool = False
    smooth: bool = False
    extra: Callable[..., Mapping[str, torch.Tensor]] | None = None
    statistics: tuple[str, ...] = ()
    base_statistics: tuple[str, ...] = ()

    def merge(
        self,
        base: torch.Tensor,
        experts: Sequence[torch.Tensor],
        context: Context,
        values: Mapping[str, Any],
    ) -> torch.Tensor:
        """One merged tensor, float32 and finite.

        Raises:
            CandidateError: an input or the result is not finite, or the method cannot merge these.
        """
        elsewhere = self.matrices and not context.is_matrix(tuple(base.shape))
        if elsewhere or not context.has(self.statistics, self.base_statistics):
            merged = average(base, experts, values, self.shares)
        elif self.exact:
            merged = self.function(base, experts, context, **values)
        else:
            context.once("finite", None, lambda: _refuse_nonfinite(base, experts, context))
            with one_thread():
                merged = self.function(base, experts, context, **values)
        if not merged.isfinite().all():
            raise CandidateError(
                f"{self.name}: the merged {context.tensor} has a value that is not finite"
            )
        return merged

    def beside(
        self,
        base: torch.Tensor,
        experts: Sequence[torch.Tensor],
        context: Context,
        values: Mapping[str, Any],
    ) -> dict[str, torch.Tensor]:
        """What the method makes beside one merged tensor; nothing where its formula does not hold.

        Raises:
            CandidateError: an input is not finite.
        """
        elsewhere = self.matrices and not context.is_matrix(tuple(base.shape))
        if self.extra is None or elsewhere:
            return {}
        _refuse_nonfinite(base, experts, context)
        with one_thread():
            return dict(self.extra(base, experts, context, **values))

    def parameter(self, name: str) -> Parameter:
        """The declared parameter of that name; ConfigError with the nearest name otherwise."""
        known = {p.name: p for p in self.parameters}
        if name not in known:
            raise ConfigError(
                f"method {self.name!r} has no parameter {name!r}; {did_you_mean(name, list(known))}"
            )
        return known[name]


def average(
    base: torch.Tensor, experts: Sequence[torch.Tensor], values: Mapping[str, Any], shares: bool
) -> torch.Tensor:
    """What matrix methods do with the tensors that their formula does not fit, float32.

    Those are tensors that are no matrix (norms, biases, convolutions), tables of tokens (embeddings
    and lm_head), and weights without the statistics that a method needs. They get
    ``θ₀ + λ Σ wᵢ τᵢ / N``, the mean of the weighted task vectors, with the method's own ``weight``
    and ``scale`` where it has them. Where the weights are ``shares``, the divisor is ``Σ wᵢ``.
    """
    count = len(experts)
    weights = values.get("weight", (1.0,) * count)
    total = sum(weights) if shares else count
    scale = values.get("scale", 1.0)
    merged = base.clone()
    for i, weight in enumerate(weights):
        if weight != 0 and scale != 0:
            merged += (experts[i] - base) * (scale * weight / total)
    return merged


def _refuse_nonfinite(
    base: torch.Tensor, experts: Sequence[torch.Tensor], context: Context
) -> None:
    """Decompositions of NaN end in whatever LAPACK does; say which tensor it is instead."""
    named: list[tuple[str, Sequence[torch.Tensor]]] = [("base", [base])]
    for i, name in enumerate(context.experts):
        factors = context.factors[i] if context.factors is not None else None
        named.append((name, [factors.b, factors.a] if factors else [experts[i]]))
    for name, tensors in named:
        if not all(t.isfinite().all() for t in tensors):
            raise CandidateError(
                f"{context.tensor} of {name} holds NaN or Inf; download it again or leave it out"
            )


_METHODS: dict[str, Method] = {}


def register(
    name: str,
    *,
    family: str,
    formula: str,
    source: str,
    cost: str,
    parameters: Sequence[Parameter],
    plain: Plain | None = None,
    **traits: Any,
) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Registers the decorated function under ``name``; a name is given once.

    ``traits`` are the fields of ``Method`` that have defaults. Without ``plain`` the method is a
    plain sum only for the base, at ``scale`` 0, if it has that parameter.
    """

    def add(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        if name in _METHODS:
            raise ValueError(f"merge method {name!r} is registered twice")
        if family not in FAMILIES:
            raise ValueError(
                f"merge method {name!r}: unknown family {family!r}, none of {list(FAMILIES)}"
            )
        _METHODS[name] = Method(
            name=name,
            family=family,
            summary=(function.__doc__ or "").strip().splitlines()[0].replace("``", ""),
            formula=formula,
            source=source,
            cost=cost,
            parameters=tuple(parameters),
            function=function,
            plain=plain or _base_alone(parameters),
            **traits,
        )
        return function

    return add


def _base_alone(parameters: Sequence[Parameter]) -> Plain:
    scaled = any(p.name == "scale" and p.low <= 0 for p in parameters)
    return lambda weights: {"scale": 0.0} if scaled and not any(weights) else None


def get_method(name: str) -> Method:
    """The method registered as ``name``; ConfigError with the nearest name otherwise."""
    if name not in _METHODS:
        raise ConfigError(f"unknown merge method {name!r}; {did_you_mean(name, sorted(_METHODS))}")
    return _METHODS[name]


def all_methods() -> tuple[Method, ...]:
    """All registered methods, by family (in the order of ``FAMILIES``) and name."""
    place = list(FAMILIES).index
    return tuple(sorted(_METHODS.values(), key=lambda m: (place(m.family), m.name)))


def single_expert(weights: Sequence[float]) -> bool:
    """Whether ``Σ wᵢ τᵢ`` is nothing, or exactly one whole task vector."""
    return sorted(set(weights)) in ([0.0], [0.0, 1.0], [1.0]) and sum(weights) <= 1
