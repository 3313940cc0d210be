"""Methods that minimise the interference between task vectors, without data."""

from evomerge.methods.optimised import optmerge, swudi, wudi

__all__ = ["optmerge", "swudi", "wudi"]
