"""Learners: coefficients of a merge learned by gradients (declared in ``methods.learned``)."""
