"""From a learner's name to its code."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from evomerge.learning import adamerging, expert_merging, self_positioning
from evomerge.learning.descent import Step
from evomerge.learning.session import Session
from evomerge.methods.learned import Learner, Settings

Learn = Callable[[Session, Learner, Settings], Iterator[Step]]

LEARN: dict[str, Learn] = {
    "adamerging": adamerging.learn,
    "adamerging++": adamerging.learn,
    "expert_merging": expert_merging.learn,
    "expert_merging++": expert_merging.learn,
    "self_positioning": self_positioning.learn,
}


def learn(session: Session, learner: Learner, settings: Settings) -> Iterator[Step]:
    """Every step of a learner; the coefficients of the last one are the result.

    Raises:
        ConfigError: the experiment has not what this learner needs.
        CandidateError: the loss stopped being finite.
    """
    with_defaults = learner.settings(settings)
    yield from LEARN[learner.name](session, learner, with_defaults)
