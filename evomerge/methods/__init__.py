"""Merge methods: pure functions over tensors, registered by name (see ``registry``)."""

from evomerge.methods import dare, linear, slerp, task_arithmetic, ties
from evomerge.methods.registry import Context, Method, Parameter, all_methods, get_method, register

__all__ = [
    "Context",
    "Method",
    "Parameter",
    "all_methods",
    "dare",
    "get_method",
    "linear",
    "register",
    "slerp",
    "task_arithmetic",
    "ties",
]
