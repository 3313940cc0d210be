"""Methods that move along arcs: of weights as vectors, or of rotations of weight matrices."""

from evomerge.methods.spherical import slerp

__all__ = ["slerp"]
