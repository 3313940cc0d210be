"""Statistics of the gradient of the reference answers' log-likelihood, at each expert's weights.

fisher         F = Σ g² / N over the items, with g the gradient of log p(answer | prompt), summed
               over the answer's tokens: the diagonal of the empirical Fisher information (Matena
               and Raffel 2022, arXiv:2111.09832, equation 5, with the data's own answers in place
               of sampled ones).
second_moment  What Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1) would hold at the
               expert: v ← β₂ v + (1 − β₂) g² over mini-batches of 8 items in their order, β₂ =
               0.999, with g the gradient of the mean negative log-likelihood of their answers'
               tokens; at the end v / (1 − β₂ᵗ).

Both have the shape of the parameter and are accumulated in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch

from evomerge.calibrate.activations import Step, checked
from evomerge.calibrate.store import Draft
from evomerge.calibrate.subject import Example, Subject, passes

BATCH: Final = 8
DECAY: Final = 0.999


def fisher(
    subject: Subject, examples: Sequence[Example], draft: Draft, memory: int, step: Step
) -> None:
    """Collects `fisher` from the model as it is; passes over groups of parameters as in `collect`.

    The accumulator of a parameter takes 4 bytes a number, its gradient comes on top one at a time.
    """
    groups = _groups(subject, draft, 4, memory)
    for index, group in enumerate(groups):
        total = _zeros(subject, group)

        def add(name: str, gradient: torch.Tensor, total: dict[str, torch.Tensor] = total) -> None:
            total[name].addcmul_(gradient, gradient)

        with gradients(subject, {n: subject.parameters[n] for n in group}, add):
            for done, example in enumerate(examples, start=index * len(examples) + 1):
                backward(subject.loglikelihood(example))
                step(done, len(groups) * len(examples))
        _write(draft, {name: each.div_(len(examples)) for name, each in total.items()})


def second_moment(
    subject: Subject, examples: Sequence[Example], draft: Draft, memory: int, step: Step
) -> None:
    """Collects `second_moment` likewise, with 8 bytes a number: the average and the gradient."""
    groups = _groups(subject, draft, 8, memory)
    batches = [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]
    done = 0
    for group in groups:
        average, gradient = _zeros(subject, group), _zeros(subject, group)

        def add(name: str, g: torch.Tensor, total: dict[str, torch.Tensor] = gradient) -> None:
            total[name] += g

        with gradients(subject, {n: subject.parameters[n] for n in group}, add):
            for batch in batches:
                answers = sum(example.answer for example in batch)
                for example in batch:
                    backward(-subject.loglikelihood(example) / answers)
                    done += 1
                    step(done, len(groups) * len(examples))
                for name, g in gradient.items():
                    average[name].mul_(DECAY).addcmul_(g, g, value=1 - DECAY)
                    g.zero_()
        correction = 1 - DECAY ** len(batches)
        _write(draft, {name: each.div_(correction) for name, each in average.items()})


@contextmanager
def gradients(
    subject: Subject,
    parameters: Mapping[str, torch.nn.Parameter],
    take: Callable[[str, torch.Tensor], None],
) -> Iterator[None]:
    """Within it, a backward pass hands the gradient of each parameter over, float32, and drops it.

    Of all the model's parameters only these require a gradient meanwhile.
    """
    before = [(parameter, parameter.requires_grad) for parameter in subject.model.parameters()]
    handles: list[Any] = []

    def hook(name: str) -> Callable[[torch.Tensor], None]:
        def after(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            take(name, parameter.grad.float())
            parameter.grad = None

        return after

    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        for name, wanted in parameters.items():
            wanted.requires_grad_(True)
            handles.append(wanted.register_post_accumulate_grad_hook(hook(name)))  # type: ignore[no-untyped-call]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required in before:
            parameter.requires_grad_(required)
            parameter.grad = None


def backward(value: torch.Tensor) -> None:
    """Parameters that the value does not depend on have gradient zero."""
    if value.requires_grad:
        value.backward()  # type: ignore[no-untyped-call]


def _groups(subject: Subject, draft: Draft, width: int, memory: int) -> list[list[str]]:
    left = {
        name: width * parameter.numel()
        for name, parameter in subject.parameters.items()
        if name not in draft.collection.tensors
    }
    return passes(left, memory)


def _zeros(subject: Subject, names: Iterable[str]) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros_like(subject.parameters[name], dtype=torch.float32, requires_grad=False)
        for name in names
    }


def _write(draft: Draft, totals: dict[str, torch.Tensor]) -> None:
    draft.record({name: draft.store.write(checked(t, name)) for name, t in totals.items()})
