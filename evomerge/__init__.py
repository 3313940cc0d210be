"""Search for the best merge of a base model and its experts.

From Python: ``open_run``, ``load_candidate``, ``run_search`` and ``merge_state_dicts`` (see
``evomerge.api``), and to add one's own: ``register_metric``, ``register_kind``,
``register_method`` and ``register_search``. Each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "open_run": ("evomerge.api", "open_run"),
    "load_candidate": ("evomerge.api", "load_candidate"),
    "run_search": ("evomerge.api", "run_search"),
    "merge_state_dicts": ("evomerge.api", "merge_state_dicts"),
    "register_metric": ("evomerge.scoring.metrics", "register_metric"),
    "register_kind": ("evomerge.scoring.measures", "register_kind"),
    "register_method": ("evomerge.methods", "register"),
    "register_search": ("evomerge.search.algorithms", "register_search"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
