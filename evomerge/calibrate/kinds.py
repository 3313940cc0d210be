"""The kinds of statistics that can be collected, and what each one is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError


@dataclass(frozen=True)
class Kind:
    """base: of the base instead of the experts. answers: items need reference answers.

    activations: of the inputs of linear layers, else of gradients. joint: an expert's depends on
    the other experts.
    """

    name: str
    help: str
    base: bool = False
    answers: bool = False
    activations: bool = False
    joint: bool = False


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("gram", "second moments E[x xᵀ] of each linear layer's inputs", activations=True),
        Kind(
            "merged_gram",
            "the same behind blocks that are merged already, block after block",
            activations=True,
            joint=True,
        ),
        Kind(
            "magnitude", "mean sizes E|x| of the inputs, in the base", base=True, activations=True
        ),
        Kind("fisher", "squared gradients of the answers' log-likelihood", answers=True),
        Kind("second_moment", "what Adam would hold: a mean of squared gradients", answers=True),
        Kind("sensitivity", "two numbers a layer, for Sens-Merging", answers=True, joint=True),
    )
}
DEFAULT: Final = ("gram", "magnitude", "fisher")


def find_kind(name: str) -> Kind:
    """The kind of that name; ConfigError with the nearest name otherwise."""
    if name not in KINDS:
        raise ConfigError(f"unknown statistic {name!r}; {did_you_mean(name, list(KINDS))}")
    return KINDS[name]
