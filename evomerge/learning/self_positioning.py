"""Self Positioning: coefficients that make the reference answers likeliest.

Li et al. 2024 (arXiv 2410.15035) look for the best point among a set of task vectors by stochastic
gradient descent on a small mixed set. From its abstract alone: the paper's loss is of embeddings,
here it is the cross-entropy of the answers' tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from evomerge.errors import ConfigError
from evomerge.learning.coefficients import uniform
from evomerge.learning.descent import Descent, Step, batches, descend
from evomerge.learning.session import Prediction, Sample, Session
from evomerge.methods.learned import Learner, Settings


def learn(session: Session, learner: Learner, settings: Settings) -> Iterator[Step]:
    """Losses are in nats a token."""
    start = uniform(session.study.space, learner.method, {"scale": 1.0}, settings["initial"])
    samples = [
        sample
        for objective in session.with_items()
        for sample in session.taught(objective, session.draw(objective, int(settings["items"])))
    ]
    if not samples:
        raise ConfigError(
            f"{learner.name} learns from reference answers, but no item drawn has one; "
            "adamerging and expert_merging need none"
        )
    steps, batch = int(settings["iterations"]), int(settings["batch"])
    yield from descend(
        session,
        Descent(
            start,
            samples,
            surprise,
            batches(samples, batch, steps, session.seed),
            optimiser=lambda raw: torch.optim.Adam(raw, settings["rate"]),
        ),
    )


def surprise(sample: Sample, found: Prediction) -> torch.Tensor:
    """Mean −log p of the target tokens, in float32."""
    target = sample.target.to(found.logits.device)
    loss: torch.Tensor = torch.nn.functional.cross_entropy(found.logits.float(), target)
    return loss
