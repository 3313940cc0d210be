"""The live model as the base or as one of the experts: its parts by the base's names, its inputs.

Items are run one at a time, so nothing is padded, with the reference answer after the prompt
(teacher forcing) but without an end token, as perplexity is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from evomerge.backends.decode import last_logits
from evomerge.backends.mapping import live_names
from evomerge.backends.prompts import Prompt, collate, extended
from evomerge.checkpoints.layout import Place, layout
from evomerge.checkpoints.sources import Sources
from evomerge.instantiate import FLOATING
from evomerge.methods.context import BASE, Context
from evomerge.scoring.data import Item
from evomerge.scoring.requests import Generate, LogLikelihood

if TYPE_CHECKING:
    from evomerge.backends.transformers import TransformersBackend

_Name = TypeVar("_Name")


@dataclass(frozen=True)
class Example:
    """An item as the model's input. answer: how many of the last tokens are the answer's."""

    prompt: Prompt
    answer: int

    @property
    def tokens(self) -> int:
        return len(self.prompt.ids)


class Subject:
    """A live model that takes on the weights of one source after the other.

    changed: what statistics are for, see `changed_tensors`.
    parameters: those of `changed` that are a parameter of the live model.
    linears: those of `changed` that are the weight of a linear layer between hidden states.
    """

    def __init__(self, backend: TransformersBackend, sources: Sources) -> None:
        """`backend` is open and holds the base."""
        self.sources = sources
        self.model, self._live, self._prompter = backend.live()
        tensors = sources.base.tensors
        self.places: dict[str, Place] = layout(tensors)
        self.changed = changed_tensors(sources)
        self.live_names, _ = live_names(self.model, tensors)
        live = self.live_names
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        layers = {
            f"{path}.weight": module
            for path, module in self.model.named_modules(remove_duplicate=False)
            if isinstance(module, torch.nn.Linear)
        }
        self.parameters: dict[str, torch.nn.Parameter] = {
            n: parameters[live[n]] for n in self.changed if live.get(n) in parameters
        }
        self.linears: dict[str, torch.nn.Linear] = {
            n: layers[live[n]] for n in self.changed if self.is_matrix(n) and live.get(n) in layers
        }

    def is_matrix(self, name: str) -> bool:
        """Whether methods for matrices treat a tensor as one."""
        context = Context(tensor=name, experts=(), module=self.places[name].module)
        return context.is_matrix(self.sources.base.tensors[name].shape)

    def become(self, source: str) -> None:
        """Loads the weights of an expert, or of the base, in place."""
        self._live.load([] if source == BASE else self._weights(source))

    def weight(self, source: str, name: str) -> torch.Tensor:
        """An expert's weight in the dtype in which the model holds it."""
        tensor = self.sources.experts[source].read(name)
        compute: torch.dtype = self.model.dtype
        return tensor if compute.itemsize >= tensor.dtype.itemsize else tensor.to(compute)

    def _weights(self, source: str) -> Iterator[tuple[str, torch.Tensor]]:
        changed, tied = self.sources.experts[source].changed, self.sources.tied
        for name in self.sources.base.tensors:
            if (origin := tied.get(name, name)) in changed:
                yield name, self.weight(source, origin)

    def example(self, item: Item) -> Example:
        """An item with its reference answer, or its prompt alone if it has none."""
        if not item.answer:
            return Example(self._prompter.prompt(Generate(item.messages, 1)), 0)
        request = LogLikelihood(item.messages, item.answer)
        prompt, answer = self._prompter.prompt(request), self._prompter.continuation(request)
        return Example(extended(prompt, answer), len(answer))

    def run(self, example: Example) -> None:
        """A forward pass for whoever watches the modules."""
        with torch.no_grad():
            self._forward(example, 1)

    def logits(self, example: Example) -> torch.Tensor:
        """The logits from which the answer's tokens are predicted, (answer, vocabulary)."""
        logits: torch.Tensor = self._forward(example, example.answer + 1)
        return logits[0, -example.answer - 1 : -1]

    def loglikelihood(self, example: Example) -> torch.Tensor:
        """Log-probability of the answer, a float32 scalar; gradients flow to what requires them."""
        scores = self.logits(example).float().log_softmax(dim=-1)
        answer = example.prompt.ids[-example.answer :].to(scores.device)
        return scores.gather(-1, answer[:, None]).sum()

    def _forward(self, example: Example, kept: int) -> Any:
        batch = collate([example.prompt], 0, self.model.device)
        return self.model(**batch, use_cache=False, **last_logits(self.model, kept)).logits


def changed_tensors(sources: Sources) -> list[str]:
    """The base's names of the tensors that any expert changes, in the order of the files.

    Of a weight that is stored as two tensors (tied), the embedding alone.
    """
    return [
        name
        for name, info in sources.base.tensors.items()
        if any(name in expert.changed for expert in sources.experts.values())
        and name not in sources.tied
        and info.dtype in FLOATING
    ]


def passes(sizes: Mapping[_Name, int], memory: int) -> list[list[_Name]]:
    """Names in their order, in groups whose sizes in bytes fit into `memory`; at least one each."""
    groups: list[list[_Name]] = []
    filled = 0
    for name, size in sizes.items():
        if not groups or filled + size > memory:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def unreached(subject: Subject, activations: bool) -> Sequence[str]:
    """Changed tensors that no statistic can be collected for: of activations, or of gradients."""
    if activations:
        return [n for n in subject.changed if subject.is_matrix(n) and n not in subject.linears]
    return [n for n in subject.changed if n not in subject.parameters]
