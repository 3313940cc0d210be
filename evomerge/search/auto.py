"""`auto`: which search, by what is known before the first candidate, and why.

The rules follow the project's benchmark of searches (docs/search-benchmark.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evomerge.search.base import OptionValue

PROBED = 100  # items from which a block of them says something
SHORT = 8  # full evaluations below which probes leave too few
GP_GENES, GP_CANDIDATES, DENSE_GENES = 60, 200, 120


@dataclass(frozen=True)
class Choice:
    """An algorithm of the table, its options, and the reason in a sentence."""

    algorithm: str
    why: str
    options: Mapping[str, OptionValue] = field(default_factory=dict)


def choose(genes: int, items: int, signals: bool, candidates: int | None) -> Choice:
    """The search for so many genes and search items, and a budget in full evaluations.

    ``signals``: whether any objective's items have a signal, or a perplexity, which needs none.
    ``candidates`` is None where the budget is declared otherwise.
    """
    short = candidates is not None and candidates < SHORT
    if items >= PROBED and signals and not short:
        return Choice(
            "guided",
            f"its probes of a few of the {items} items, by likelihood, say more for their cost "
            f"about {genes} genes than full scores alone",
        )
    reason = (
        f"a budget of {candidates} leaves no room for probes"
        if short
        else f"{items} items are too few to be looked at in parts"
        if items < PROBED
        else "no objective has likelihoods to probe by"
    )
    if genes <= GP_GENES and (candidates is None or candidates <= GP_CANDIDATES):
        return Choice("gp", f"{reason}, and a Gaussian process bears {genes} genes")
    kind = "cma" if genes < DENSE_GENES else "diagonal-cma"
    return Choice(kind, f"{reason}, and {genes} genes or the budget are too many for the others")
