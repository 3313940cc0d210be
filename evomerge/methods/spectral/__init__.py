"""Methods that work on the singular values and vectors of task vectors."""

from evomerge.methods.spectral import (
    dc_merge,
    decompositions,
    iso,
    knots,
    rotated,
    truncation,
    tsv,
    twin,
)

__all__ = ["dc_merge", "decompositions", "iso", "knots", "rotated", "truncation", "tsv", "twin"]
