"""Methods that need statistics of the experts: activations, gradients or optimiser states."""

from evomerge.methods.statistics import aim, bayesian, fisher, lot, ota, regmean, sens

__all__ = ["aim", "bayesian", "fisher", "lot", "ota", "regmean", "sens"]
