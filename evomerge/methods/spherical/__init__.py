"""Methods that move along arcs: of weights as vectors, or of rotations of weight matrices."""

from evomerge.methods.spherical import (
    karcher,
    model_stock,
    multislerp,
    nuslerp,
    orthomerge,
    slerp,
)

__all__ = [
    "karcher",
    "model_stock",
    "multislerp",
    "nuslerp",
    "orthomerge",
    "slerp",
]
