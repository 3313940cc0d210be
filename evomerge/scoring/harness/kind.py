"""The kind of objective `lm-eval`: a task of lm-evaluation-harness, scored document by document.

kind: lm-eval
task: arc_easy                # a task's name, or a YAML file
include: tasks                # optional: a folder with further tasks
metric: acc_norm              # optional: default the task's first
filter: strict-match          # optional: of a task with several, default the first
fewshot: 5                    # optional: default the task's own
chat: true                    # optional: with the base's chat template, examples as its turns
limit: 200                    # optional: at most so many documents of each split
held_out: 0.5                 # optional: the share held out; see `documents`
max_new_tokens: 64            # optional: default the task's own
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from evomerge.documents import did_you_mean
from evomerge.errors import ConfigError
from evomerge.scoring.data import Item
from evomerge.scoring.harness import documents
from evomerge.scoring.harness.documents import Case, Shape
from evomerge.scoring.harness.tasks import open_task, version
from evomerge.scoring.measures import Direction, Kind, generated, likelihood
from evomerge.scoring.requests import Generate, Request, Response, Rolling
from evomerge.scoring.statistics import ItemScore, Value, corpus_perplexity, mean, weighted_mean


class LmEval(Kind):
    """See the module. Without a name the objective is called as the task calls itself."""

    kind: Literal["lm-eval"]
    name: str = ""
    task: str
    include: str | None = None
    metric: str | None = None
    filter: str | None = None
    fewshot: NonNegativeInt | None = None
    chat: bool = False
    limit: PositiveInt | None = None
    held_out: float | None = Field(default=None, ge=0, lt=1)
    max_new_tokens: PositiveInt | None = None


@dataclass(frozen=True)
class Aggregation:
    """An aggregation of the harness as a mean over documents.

    item: the score of a document from what the task makes of it. value: of all documents.
    """

    item: Callable[[Any], ItemScore]
    value: Callable[[Sequence[ItemScore]], Value]


def _brier(given: Any) -> ItemScore:
    right, probabilities = given
    return ItemScore(math.fsum((float(p) - (i == right)) ** 2 for i, p in enumerate(probabilities)))


def _ratio(unit: float) -> Callable[[Any], ItemScore]:
    return lambda given: ItemScore(-given[0] / given[1] / unit, given[1])


AGGREGATIONS: Mapping[str, Aggregation] = {
    "mean": Aggregation(lambda given: ItemScore(float(given)), mean),
    "nanmean": Aggregation(
        lambda given: ItemScore(0.0, 0.0) if math.isnan(given) else ItemScore(float(given)),
        weighted_mean,
    ),
    "perplexity": Aggregation(lambda given: ItemScore(-float(given)), corpus_perplexity),
    "weighted_perplexity": Aggregation(_ratio(1.0), corpus_perplexity),
    "bits_per_byte": Aggregation(_ratio(math.log(2)), weighted_mean),
    "brier_score": Aggregation(_brier, mean),
}
"""Those of the harness that are means over documents, of whatever is then made an exponential of.
The others (F1, BLEU, ...) look at all documents at once, so documents have no scores of their own.
"""


@dataclass(frozen=True)
class HarnessTask:
    """An opened task as a measure of an objective; its items are those of `splits`."""

    spec: LmEval
    task: Any
    metric: str
    filter: Any
    aggregation: str
    cases: Mapping[str, Case]
    splits: Mapping[Literal["search", "held_out"], tuple[Item, ...]]
    sha256: Mapping[Literal["search", "held_out"], str]

    @property
    def name(self) -> str:
        return self.spec.name or str(self.task.task_name)

    @property
    def natural_direction(self) -> Direction:
        return "maximise" if self.task.higher_is_better().get(self.metric, True) else "minimise"

    def requests(self, item: Item) -> list[Request]:
        return list(self.cases[item.id].requests)

    def score(self, item: Item, responses: Sequence[Response]) -> ItemScore:
        """What the task's own filter and `process_results` make of the responses."""
        case = self.cases[item.id]
        answered = [
            replace(instance, resps=[_result(request, r)] * instance.repeats, filtered_resps={})
            for instance, request, r in zip(case.instances, case.requests, responses, strict=True)
        ]
        self.filter.apply(answered)
        kept = [instance.filtered_resps[self.filter.name] for instance in answered]
        scores = self.task.process_results(case.document, kept)
        if self.metric not in scores:
            raise ConfigError(
                f"objective {self.name}: the task makes no {self.metric!r} of its answers; "
                f"metric: {did_you_mean(self.metric, list(scores))}"
            )
        return AGGREGATIONS[self.aggregation].item(scores[self.metric])

    def aggregate(self, scores: Sequence[ItemScore]) -> Value:
        return AGGREGATIONS[self.aggregation].value(scores)

    def describe(self) -> dict[str, Any]:
        """What defines the scores beside the documents, without what differs between machines.

        exponential: whether the value is exp of a weighted mean.
        """
        config = self.task.dump_config()
        own = {k: v for k, v in config.items() if k not in ("dataset_kwargs", "metadata")}
        text = json.dumps(own, sort_keys=True, default=_source)
        return {
            **self.spec.model_dump(mode="json"),
            "name": self.name,
            "metric": self.metric,
            "filter": self.filter.name,
            "aggregation": self.aggregation,
            "exponential": AGGREGATIONS[self.aggregation].value is corpus_perplexity,
            "lm_eval": version(),
            "task_version": str(self.task.VERSION),
            "task_sha256": hashlib.sha256(text.encode()).hexdigest(),
        }


@dataclass(frozen=True)
class ChoiceTask(HarnessTask):
    """A task whose score is whether the right choice is the likeliest one: it has a signal.

    By item, ``rights`` are the right choices and ``lengths`` what log-likelihoods are divided by.
    """

    rights: Mapping[str, int]
    lengths: Mapping[str, tuple[int, ...]]

    def signal_requests(self, item: Item) -> list[Request]:
        return self.requests(item)[
            : len(self.lengths[item.id])
        ]  # the rest is for mutual information

    def signal(self, item: Item, responses: Sequence[Response]) -> float:
        """How far the right choice is above the best wrong one, in what decides the score."""
        scores = [
            likelihood(response).logprob / length
            for response, length in zip(responses, self.lengths[item.id], strict=True)
        ]
        right = scores.pop(self.rights[item.id])
        return right - max(scores)


_LENGTHS: Mapping[str, Callable[[str], int]] = {
    "acc": lambda choice: 1,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}


def _with_signal(task: HarnessTask) -> HarnessTask:
    """The task with its signal, if every item asks for each choice and one of them is right."""
    made = task.task
    plain = made.OUTPUT_TYPE == "multiple_choice" and not callable(made.config.process_results)
    if not plain or made.multiple_target or task.metric not in _LENGTHS:
        return task
    rights: dict[str, int] = {}
    lengths: dict[str, tuple[int, ...]] = {}
    for id, case in task.cases.items():
        choices, right = made.doc_to_choice(case.document), documents.target(made, case.document)
        lengths[id] = tuple(_LENGTHS[task.metric](choice) for choice in choices)
        if (
            not isinstance(right, int)
            or right not in range(len(choices))
            or len(choices) < 2
            or len(case.requests) not in (len(choices), 2 * len(choices))
            or not all(lengths[id])
        ):
            return task
        rights[id] = right
    return ChoiceTask(**vars(task), rights=rights, lengths=lengths)


def load_task(spec: LmEval, folder: Path) -> HarnessTask:
    """Opens the task and asks its documents; paths count from `folder`.

    Raises:
        InputError: see `open_task` and `documents.divided`; also ConfigError for a metric or a
            filter that the task does not have, or that has no scores of single documents.
    """
    task = open_task(spec.task, spec.include, folder)
    metric, aggregation = _metric(task, spec)
    filters = {f.name: f for f in task._filters}
    if spec.filter is not None and spec.filter not in filters:
        raise ConfigError(
            f"lm-eval task {spec.task} has no filter {spec.filter!r}; "
            f"{did_you_mean(spec.filter, list(filters))}"
        )
    shape = Shape(spec.fewshot, spec.chat, spec.max_new_tokens)
    splits = documents.divided(task, shape, spec.limit, spec.held_out)
    opened = HarnessTask(
        spec,
        task,
        metric,
        filters[spec.filter] if spec.filter is not None else next(iter(filters.values())),
        aggregation,
        {case.item.id: case for cases in splits.values() for case in cases},
        {split: tuple(case.item for case in cases) for split, cases in splits.items()},
        {split: documents.sha256(cases) for split, cases in splits.items()},
    )
    return _with_signal(opened)


def _metric(task: Any, spec: LmEval) -> tuple[str, str]:
    """The metric and the name of its aggregation."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    names = {function: name for name, function in AGGREGATION_REGISTRY.items()}
    found = {m: names.get(function, "of its own") for m, function in task.aggregation().items()}
    metric = spec.metric or next(iter(found))
    if metric not in found:
        raise ConfigError(
            f"lm-eval task {spec.task} has no metric {metric!r}; "
            f"{did_you_mean(metric, list(found))}"
        )
    if found[metric] not in AGGREGATIONS:
        usable = [m for m, name in found.items() if name in AGGREGATIONS]
        raise ConfigError(
            f"lm-eval task {spec.task}: metric {metric} (aggregation {found[metric]}) is a number "
            "of all documents at once, an objective needs one of each document; "
            + (f"metric: {' or '.join(usable)}" if usable else "the task has no other")
        )
    return metric, found[metric]


def _result(request: Request, response: Response) -> Any:
    """A response as the harness's models give it."""
    if isinstance(request, Generate):
        return generated([response]).text
    found = likelihood(response)
    return found.logprob if isinstance(request, Rolling) else (found.logprob, found.greedy)


def _source(value: Any) -> str:
    """A function of a task by its text, whatever else by its kind."""
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return str(getattr(value, "__qualname__", type(value).__name__))
