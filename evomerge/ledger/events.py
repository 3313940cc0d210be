"""The events of a study. Their bodies are deterministic; times and durations stand apart.

study       the experiment's identity, the content of its sources, its genes; always first
reference   a reference point (base, expert, average, ...): name, recipe, genome if it has one
asked       a candidate that the search proposed: its genome; of a probe also its look
lost        a worker died with the candidate; it is tried again
seen        digest and per-item values of some blocks, by the metric, or by the signal and slopes
scored      digest of the weights, values and per-item scores on the search split
dropped     racing: what was seen shows that the front dominates the candidate; it is not scored
failed      the candidate cannot be built or scored; why
held_out    the same as scored, on the held-out split
finished    the budget is spent and the front is re-scored; why it ended
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "study",
    "reference",
    "asked",
    "lost",
    "seen",
    "scored",
    "dropped",
    "failed",
    "held_out",
    "finished",
]


@dataclass(frozen=True)
class Event:
    """One fact. ``body`` is what a resumed run repeats exactly, ``timing`` what it cannot (s)."""

    kind: Kind
    candidate: int | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)
    time: float = 0.0  # seconds since the epoch; set by the store
    session: int = 0  # set by the store
