"""Methods that merge each entry of a tensor by itself, after at most a ranking of the entries."""

from evomerge.methods.elementwise import (
    breadcrumbs,
    consensus,
    dare,
    della,
    emr,
    linear,
    overlap,
    task_arithmetic,
    ties,
)

__all__ = [
    "breadcrumbs",
    "consensus",
    "dare",
    "della",
    "emr",
    "linear",
    "overlap",
    "task_arithmetic",
    "ties",
]
