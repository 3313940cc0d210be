"""An experiment opened for learning: the live model, and the items of the search split."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from evomerge.backends import make_backend, merge_device
from evomerge.backends.config import TransformersConfig
from evomerge.backends.decode import greedy, last_logits
from evomerge.backends.mapping import live_tensors
from evomerge.backends.prompts import Prompt, Prompter, collate, extended
from evomerge.backends.transformers import TransformersBackend
from evomerge.checkpoints.sources import Sources
from evomerge.engine.study import Study
from evomerge.errors import ConfigError
from evomerge.instantiate import Merge
from evomerge.learning.coefficients import Coefficients
from evomerge.learning.functional import MergedModel, kept
from evomerge.recipe import Recipe
from evomerge.scoring.data import Item
from evomerge.scoring.objectives import Objective
from evomerge.scoring.requests import Generate, LogLikelihood, Rolling


@dataclass(frozen=True)
class Sample:
    """What a model is shown of an item, and at which positions its predictions count.

    ``prompt`` may end with tokens of an answer; the last ``count`` positions count. ``target`` is
    what the learner compares with.
    """

    objective: str
    prompt: Prompt
    count: int
    target: Any = None


@dataclass(frozen=True)
class Prediction:
    """At the positions that count: logits (count, vocabulary), and one hidden state (count, width)
    if it was asked for."""

    logits: torch.Tensor
    hidden: torch.Tensor | None


Loss = Callable[[Sample, Prediction], torch.Tensor]


@dataclass(frozen=True)
class Session:
    """A study with its model brought up; the random choices of learners follow from ``seed``.

    ``items_for`` pairs experts with the objectives of their tasks, where their names do not.
    """

    study: Study
    backend: TransformersBackend
    model: Any
    prompter: Prompter
    live: Mapping[str, torch.Tensor]
    sources: Sources
    seed: int
    items_for: Sequence[tuple[str, str]]

    def load(self, recipe: Recipe) -> None:
        """Brings the live model to a recipe's weights, in place."""
        merge = Merge(recipe, self.sources, self._device)
        self.backend.load(merge.tensors())

    def merged(self, start: Coefficients) -> MergedModel:
        """The live model as a function of coefficients, at ``start``."""
        self.load(start.recipe(self.study.space))  # also casts what is not moved
        return MergedModel(
            self.model, self.live, start, self.study.space, self.sources, self._device
        )

    def draw(self, objective: Objective, count: int) -> list[Item]:
        """``count`` items of an objective's search split, or all if it has fewer."""
        items = objective.items("search")
        drawn = random.Random(f"{self.seed} {objective.name}")
        return drawn.sample(items, min(count, len(items)))

    def with_items(self) -> tuple[Objective, ...]:
        """The objectives that have items.

        Raises:
            ConfigError: none has.
        """
        found = tuple(o for o in self.study.objectives if o.items("search"))
        if not found:
            raise ConfigError("no objective of the experiment has items to learn from; add one")
        return found

    def answered(self, objective: Objective, items: Sequence[Item], tokens: int) -> list[Sample]:
        """Items followed by the answers that the model gives them now, greedily.

        What counts is every position from which a token of the answer was chosen, its end too: at
        most ``tokens`` of them, and at most as many as the objective lets the model generate.
        """
        prompts, limits = [], []
        for item in items:
            request = _question(objective, item)
            prompts.append(self.prompter.prompt(request))
            limits.append(min(tokens, getattr(request, "max_new_tokens", tokens)))
        samples = [Sample(objective.name, prompt, 1) for prompt in prompts]
        for chunk in self._chunks(samples):
            batch = collate([prompts[i] for i in chunk], self._pad, self.model.device)
            rows = greedy(self.model, batch, [limits[i] for i in chunk], self._stops, self._pad)
            for i, row in zip(chunk, rows, strict=True):
                said = torch.tensor(row[:-1], dtype=torch.int64)
                prompt = extended(prompts[i], said) if len(said) else prompts[i]
                samples[i] = Sample(objective.name, prompt, len(row))
        return samples

    def taught(self, objective: Objective, items: Sequence[Item]) -> list[Sample]:
        """Items followed by their reference answers, whose tokens are the targets.

        The end token is one of them where the objective lets the model generate, which must then
        stop by itself. Items without a reference answer are left out.
        """
        samples = []
        for item in items:
            if not item.answer:
                continue
            request = _question(objective, item)
            ended = isinstance(request, Generate)
            asked = LogLikelihood(request.messages, item.answer, ended)
            tokens = self.prompter.continuation(asked)
            prompt = self.prompter.prompt(request)
            prompt = extended(prompt, tokens[:-1]) if len(tokens) > 1 else prompt
            samples.append(Sample(objective.name, prompt, len(tokens), tokens))
        return samples

    def predictions(
        self, model: Any, samples: Sequence[Sample], depth: float | None = None
    ) -> Iterator[list[tuple[int, Prediction]]]:
        """One batch after the other: the place of each sample, and what ``model`` predicts there.

        ``depth`` asks for a hidden state: 0 for the embeddings, 1 for the last block's output.
        """
        for chunk in self._chunks(samples):
            batch = collate([samples[i].prompt for i in chunk], self._pad, self.model.device)
            longest = max(samples[i].count for i in chunk)
            output = model(
                **batch,
                use_cache=False,
                output_hidden_states=depth is not None,
                **last_logits(self.model, longest),
            )
            hidden = None
            if depth is not None:
                hidden = output.hidden_states[round(depth * (len(output.hidden_states) - 1))]
            yield [
                (
                    i,
                    Prediction(
                        output.logits[row, -samples[i].count :],
                        None if hidden is None else hidden[row, -samples[i].count :],
                    ),
                )
                for row, i in enumerate(chunk)
            ]

    def close(self) -> None:
        self.backend.close()

    @property
    def _device(self) -> str:
        return merge_device(self.study.experiment.backend)

    @cached_property
    def _pad(self) -> int:
        """Any token will do, since it is masked."""
        return self.prompter.tokenizer.pad_token_id or 0

    @cached_property
    def _stops(self) -> list[int]:
        """The tokens at which generation ends."""
        stops = getattr(self.model.generation_config, "eos_token_id", None)
        stops = self.prompter.tokenizer.eos_token_id if stops is None else stops
        return [stops] if isinstance(stops, int) else list(stops or [])

    def _chunks(self, samples: Sequence[Sample]) -> Iterator[list[int]]:
        """Places of the samples of each batch: of one family and of similar length."""
        config = self.study.experiment.backend
        assert isinstance(config, TransformersConfig)  # or open_session would have refused
        size = config.batch
        families: dict[tuple[str, ...], list[int]] = {}
        for i, sample in enumerate(samples):
            families.setdefault(sample.prompt.family, []).append(i)
        for family in sorted(families):
            order = sorted(families[family], key=lambda i: -len(samples[i].prompt.ids))
            for start in range(0, len(order), size):
                yield order[start : start + size]


def _question(objective: Objective, item: Item) -> Generate | LogLikelihood:
    request = objective.requests(item)[0]
    if isinstance(request, Rolling):
        raise ConfigError(
            f"objective {objective.name} scores whole texts and asks no questions to learn from; "
            "leave it out"
        )
    return request


def open_session(study: Study, seed: int, items_for: Sequence[tuple[str, str]] = ()) -> Session:
    """Brings up the model of a study.

    Raises:
        InputError: the experiment's backend has no gradients, or cannot run the base.
    """
    backend = make_backend(study.experiment.backend, study.sources)
    if not isinstance(backend, TransformersBackend):
        raise ConfigError(
            f"backend {study.experiment.backend.name!r} has no gradients; learning needs "
            "backend: {name: transformers}"
        )
    backend.open()
    model, _, prompter = backend.live()
    live = live_tensors(model, study.sources.base)
    sources = kept(study.sources, study.space)
    return Session(study, backend, model, prompter, live, sources, seed, items_for)
