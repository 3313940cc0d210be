"""What was seen of a candidate: a part of its items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evomerge.scoring.blocks import Part


@dataclass(frozen=True)
class Seen:
    """What one evaluation of a part gave.

    ``items`` are values by objective, in the order of their positions in the part's blocks: scores,
    or signals where the part asks for the signal and the objective has one. ``weighed`` are the
    scores of objectives without items. ``slopes`` are, where the part asks for them, the
    derivatives of the mean soft score by the weights of the candidate's recipe: by objective, the
    recipe's groups outermost, then the experts in the order of its weights (or one number for all).
    """

    part: Part
    digest: str
    items: Mapping[str, tuple[float, ...]]
    tokens: int
    weighed: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # of items, if not all 1
    timing: Mapping[str, float] = field(default_factory=dict)
    slopes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def cost(self) -> int:
        """Scored items that it counts."""
        return self.part.passes * sum(len(values) for values in self.items.values())

    def body(self) -> dict[str, Any]:
        """As an event's body; ``from_body`` gives the equal object back."""
        return {
            **part_body(self.part),
            "digest": self.digest,
            "items": {n: list(v) for n, v in self.items.items()},
            "tokens": self.tokens,
            "weighed": dict(self.weighed),
            "weights": {n: list(w) for n, w in self.weights.items()},
            **({"by_weight": {n: list(s) for n, s in self.slopes.items()}} if self.slopes else {}),
        }

    @classmethod
    def from_body(cls, body: Mapping[str, Any], timing: Mapping[str, float]) -> Seen:
        return cls(
            part=part_from(body),
            digest=body["digest"],
            items={n: tuple(v) for n, v in body["items"].items()},
            tokens=body["tokens"],
            weighed=body["weighed"],
            weights={n: tuple(w) for n, w in body["weights"].items()},
            timing=timing,
            slopes={n: tuple(s) for n, s in body.get("by_weight", {}).items()},
        )


def part_body(part: Part) -> dict[str, Any]:
    """A part as JSON."""
    slopes = {"slopes": True} if part.slopes else {}
    return {"blocks": list(part.blocks), "signal": part.signal, **slopes}


def part_from(body: Mapping[str, Any]) -> Part:
    """The part that ``part_body`` wrote."""
    return Part(tuple(body["blocks"]), body["signal"], body.get("slopes", False))
