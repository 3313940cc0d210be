"""Checkpoints on disk: opening, naming, hashing, comparing and writing them.

Nothing is imported here, so that `evomerge.checkpoints.layout` stays free of torch.
"""
