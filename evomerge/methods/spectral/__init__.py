"""Methods that work on the singular values and vectors of task vectors."""

from evomerge.methods.spectral import decompositions, iso, truncation, tsv, twin

__all__ = ["decompositions", "iso", "truncation", "tsv", "twin"]
