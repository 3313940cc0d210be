"""Statistics of an expert that depend on the other experts too.

merged_gram  The Grams that RegMean++ needs (Nguyen et al. 2025, arXiv:2508.03121). Blocks are taken
             in the order in which they run. The inputs of a block come from the model whose blocks
             before it are merged already, by `regmean_plus_plus` itself; within the block run the
             expert's own weights. Each expert reads its own items. What lies outside the blocks and
             has no Gram (embeddings, norms, convolutions) is averaged before the first block.
sensitivity  For Sens-Merging (Liu et al. 2025, arXiv:2502.12420), two numbers, the same for all
             tensors of a block. First α: S = Σ |θ g| over the block, averaged over the expert's own
             items, with g the gradient of the mean negative log-likelihood of the answer's tokens,
             divided by the root of Σ S² over all blocks; a tensor outside the blocks counts as a
             block. Second the sum over the other experts j of ‖logits − logits of j‖₂, averaged
             over the answer's tokens, then over the items of j.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch

from evomerge.backends.mapping import live_tensors
from evomerge.calibrate.activations import Step, Wiring, checked, collect, trace
from evomerge.calibrate.gradients import backward, gradients
from evomerge.calibrate.store import Draft
from evomerge.calibrate.subject import Example, Subject, passes
from evomerge.checkpoints.layout import place
from evomerge.methods import Context, get_method
from evomerge.methods.context import BASE
from evomerge.recipe import Group, group_values

Examples = Mapping[str, Sequence[Example]]
Drafts = Mapping[str, Draft]
Block = tuple[str, int | None]
Layer = Block | str


def merged_gram(
    subject: Subject,
    examples: Examples,
    drafts: Drafts,
    memory: int,
    off_diagonal: float,
    step: Step,
) -> None:
    """Collects `merged_gram` of all experts; `off_diagonal` is that of the merges on the way.

    After an interruption, blocks whose Grams are all recorded are merged again from those.
    """
    subject.become(BASE)
    live = live_tensors(subject.model, subject.sources.base)
    everybody = [example for each in examples.values() for example in each]
    wiring = trace(subject, everybody, subject.linears)
    stages = list(dict.fromkeys(_block(subject, name) for name in wiring.order))

    def put(names: Sequence[str], make: Callable[[str], torch.Tensor]) -> None:
        with torch.no_grad():
            for name in names:
                live[name].copy_(make(name))

    def merge(name: str) -> torch.Tensor:
        return _merged(subject, drafts, off_diagonal, name)

    try:
        put([n for n in subject.changed if _block(subject, n) not in stages], merge)
        for number, stage in enumerate(stages):
            names = [n for n in subject.changed if _block(subject, n) == stage]
            here = Wiring(tuple(n for n in wiring.order if n in names), wiring.leader)
            for index, (expert, own) in enumerate(examples.items()):
                put(names, lambda name, expert=expert: subject.weight(expert, name))  # type: ignore[misc]
                collect(subject, "gram", own, here, drafts[expert], memory, lambda *_: None)
                step(number * len(examples) + index + 1, len(stages) * len(examples))
            put(names, merge)
    finally:
        put(subject.changed, subject.sources.base.read)


def _block(subject: Subject, name: str) -> Block:
    return subject.places[name].tower, subject.places[name].block


def _merged(subject: Subject, drafts: Drafts, off_diagonal: float, name: str) -> torch.Tensor:
    """A tensor merged by RegMean++ from the Grams collected so far."""
    method = get_method("regmean_plus_plus")
    experts = tuple(sorted(drafts))
    device = subject.model.device

    def lookup(kind: str, source: str) -> torch.Tensor | None:
        found = drafts[source].collection.tensors
        return drafts[source].read(name).to(device) if name in found else None

    context = Context(
        tensor=name, experts=experts, module=subject.places[name].module, lookup=lookup
    )
    group = Group.model_validate({"tensors": "*/*/*", "off_diagonal": off_diagonal})
    return method.merge(
        subject.sources.base.read(name).to(device).float(),
        [subject.sources.experts[expert].read(name).to(device) for expert in experts],
        context,
        group_values(method, group, experts),
    )


def sensitivity(
    subject: Subject, examples: Examples, drafts: Drafts, memory: int, step: Step
) -> None:
    """Collects `sensitivity` of all experts; the logits kept meanwhile fit into `memory` bytes."""
    items = sum(len(own) for own in examples.values())
    total = items * (1 + len(examples))
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        step(done, total)

    alphas = {}
    for expert, own in examples.items():
        subject.become(expert)
        alphas[expert] = _alphas(subject, own, tick)
    distances = _distances(subject, examples, memory, tick)
    for expert, draft in drafts.items():
        written = {}
        for name in subject.changed:
            if (key := _layer(subject.live_names.get(name, name))) in alphas[expert]:
                pair = torch.tensor([alphas[expert][key], distances[expert]])
                written[name] = draft.store.write(checked(pair, name))
        draft.record(written)


def _alphas(
    subject: Subject, examples: Sequence[Example], tick: Callable[[], None]
) -> dict[Layer, float]:
    """α by layer, from the model as it is."""
    parameters = dict(subject.model.named_parameters())
    sums: defaultdict[Layer, torch.Tensor] = defaultdict(
        lambda: torch.zeros((), dtype=torch.float64, device=subject.model.device)
    )

    def add(name: str, gradient: torch.Tensor) -> None:
        weight = parameters[name].detach().float()
        sums[_layer(name)] += (weight * gradient).abs().sum(dtype=torch.float64)

    with gradients(subject, parameters, add):
        for example in examples:
            backward(-subject.loglikelihood(example) / example.answer)
            tick()
    found = {_layer(name): float(sums[_layer(name)]) for name in parameters}
    norm = math.sqrt(math.fsum(s * s for s in found.values()))
    return {
        layer: s / norm if norm > 0 else 1 / math.sqrt(len(found)) for layer, s in found.items()
    }


def _layer(name: str) -> Layer:
    """What counts as a layer: the block, or outside the blocks the tensor."""
    found = place(name)
    return name if found.block is None else (found.tower, found.block)


def _distances(
    subject: Subject, examples: Examples, memory: int, tick: Callable[[], None]
) -> dict[str, float]:
    """For each expert, the sum of its distances from the others, each on the other's items."""
    sums = {expert: 0.0 for expert in examples}
    vocabulary = subject.model.get_output_embeddings().weight.shape[0]
    for owner, own in examples.items():
        sizes = {i: 4 * vocabulary * example.answer for i, example in enumerate(own)}
        for chunk in passes(sizes, memory):
            subject.become(owner)
            kept = [_logits(subject, own[i], tick) for i in chunk]
            for expert in examples:
                if expert == owner:
                    continue
                subject.become(expert)
                for i, theirs in zip(chunk, kept, strict=True):
                    apart = (_logits(subject, own[i], tick) - theirs).norm(dim=-1).mean()
                    sums[expert] += float(apart) / len(own)
    return sums


def _logits(subject: Subject, example: Example, tick: Callable[[], None]) -> torch.Tensor:
    with torch.no_grad():
        logits = subject.logits(example).float()
    tick()
    return logits
