"""Methods that merge each entry of a tensor by itself, after at most a ranking of the entries."""

from evomerge.methods.elementwise import dare, linear, task_arithmetic, ties

__all__ = ["dare", "linear", "task_arithmetic", "ties"]
