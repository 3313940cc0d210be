"""Configurations of mergekit, read as recipes and written from them (see docs/mergekit.md).

``form`` is the shape of a configuration and the rule by which it gives each tensor its values,
``shared`` the table of methods that both projects have, ``cells`` the grouping of tensors by their
values; ``read`` and ``write`` go the two ways. Written from mergekit's documentation and behaviour
(version 0.1.4); nothing of mergekit is needed or copied.
"""
