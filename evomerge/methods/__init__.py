"""Merge methods: pure functions over tensors, registered by name (see ``registry``)."""

from evomerge.methods import elementwise, optimised, spectral, spherical, statistics
from evomerge.methods.context import Context, Factors
from evomerge.methods.registry import Method, Parameter, all_methods, get_method, register

__all__ = [
    "Context",
    "Factors",
    "Method",
    "Parameter",
    "all_methods",
    "elementwise",
    "get_method",
    "optimised",
    "register",
    "spectral",
    "spherical",
    "statistics",
]
