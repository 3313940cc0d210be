"""AdaMerging: coefficients under which the merged model is surest of what it says.

Yang et al. 2024 (arXiv 2310.02575), layer-wise, and AdaMerging++ on what TIES leaves of the task
vectors. The entropy of a classifier's output becomes the mean entropy of the next-token
distribution at the positions of an answer: the model's own greedy one at the initial coefficients,
its end included, made once. One port to models that generate (fusion_bench, Flan-T5) looks at
the first token alone: ``tokens`` 1 here. No reference answer is read.

Where TIES elects signs by the coefficients, the gradient is that between two elections: it does not
see that a step may turn some.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from evomerge.learning.coefficients import uniform
from evomerge.learning.descent import Descent, Step, batches, descend
from evomerge.learning.session import Prediction, Sample, Session
from evomerge.methods.learned import Learner, Settings


def learn(session: Session, learner: Learner, settings: Settings) -> Iterator[Step]:
    """AdaMerging, or with a ``density`` AdaMerging++; losses are mean entropies in nats."""
    constants: dict[str, float | bool] = {"scale": 1.0}
    if "density" in settings:
        # with the mean over agreeing experts, a lone expert's coefficient would cancel
        constants |= {"density": settings["density"], "normalise": False}
    start = uniform(session.study.space, learner.method, constants, settings["initial"])
    session.load(start.recipe(session.study.space))
    samples = [
        sample
        for objective in session.with_items()
        for sample in session.answered(
            objective, session.draw(objective, int(settings["items"])), int(settings["tokens"])
        )
    ]
    steps, batch = int(settings["iterations"]), int(settings["batch"])
    yield from descend(
        session,
        Descent(
            start,
            samples,
            entropy,
            batches(samples, batch, steps, session.seed),
            optimiser=lambda raw: torch.optim.Adam(raw, settings["rate"]),
            shape=lambda raw: raw.clamp(0, 1),
        ),
    )


def entropy(sample: Sample, found: Prediction) -> torch.Tensor:
    """Mean over the positions of −Σ p log p, in float32."""
    logs = found.logits.float().log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).mean()
