"""The kinds of objective: what each asks about an item and how it turns the answers into a score.

Each kind is the typed form of its `objective.yaml`, with four methods: `check(item)` raises
ValueError for an item that it cannot score, `requests(item)`, `score(item, responses)` in the order
of the requests, and `aggregate(scores)`. `sparsity` asks nothing: its score comes from the weights.

A kind may have a signal: a number for each item that moves smoothly where the score is 0 or 1, and
grows with it. `signal_requests(item)` and `signal(item, responses)` are then two more methods.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Protocol,
    get_args,
    get_type_hints,
    runtime_checkable,
)

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, TypeAdapter
from pydantic import ValidationError as InvalidParameter

from evomerge.documents import did_you_mean
from evomerge.errors import CandidateError
from evomerge.scoring.data import Item
from evomerge.scoring.metrics import METRICS
from evomerge.scoring.requests import (
    Generate,
    Generated,
    Likelihood,
    LogLikelihood,
    Request,
    Response,
)
from evomerge.scoring.statistics import ItemScore, Value, corpus_perplexity, mean

Direction = Literal["maximise", "minimise"]


@dataclass(frozen=True)
class WeightStats:
    """Element counts over the tensors that a recipe moves: all of them, and those left at base."""

    moved: int
    unchanged: int


@runtime_checkable
class Signalling(Protocol):
    """A kind with a signal."""

    def signal_requests(self, item: Item) -> list[Request]:
        """What is asked of the model for the signal of an item."""

    def signal(self, item: Item, responses: Sequence[Response]) -> float:
        """The signal of an item, finite, more is better, from the responses in their order."""


@dataclass(frozen=True)
class BoundMetric:
    """A metric of `METRICS` with its parameters."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, response: str, answer: str) -> float:
        return METRICS[self.name](response, answer, **self.parameters)


def bind_metric(given: Any) -> BoundMetric:
    """`"exact_match"` or `{"name": "grid", "tolerance": 1}` as a metric with checked parameters.

    Raises:
        ValueError: unknown metric or parameter, or a parameter of another type.
    """
    if isinstance(given, BoundMetric):
        return given
    raw = {"name": given} if isinstance(given, str) else given
    if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str):
        raise ValueError("expected the name of a metric, or a mapping with its name and parameters")
    name = raw["name"]
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; {did_you_mean(name, list(METRICS))}")
    hints = get_type_hints(METRICS[name])
    known = [
        p.name
        for p in inspect.signature(METRICS[name]).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]
    parameters = {key: value for key, value in raw.items() if key != "name"}
    for key, value in parameters.items():
        if key not in known:
            hint = did_you_mean(key, known) if known else "it has none"
            raise ValueError(f"unknown parameter {key!r} of metric {name}; {hint}")
        try:
            parameters[key] = TypeAdapter(hints[key]).validate_python(value, strict=True)
        except InvalidParameter as error:
            reason = error.errors()[0]["msg"]
            raise ValueError(f"parameter {key!r} of metric {name}: {reason}") from None
    return BoundMetric(name, parameters)


def _as_mapping(given: Any) -> Any:
    return {"file": given} if isinstance(given, str) else given


class DataFile(BaseModel):
    """A data file of an objective: its path from the objective's folder, and its declared hash."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")


class Data(BaseModel):
    """What the search sees, and what only the final front is scored on."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    search: Annotated[DataFile, BeforeValidator(_as_mapping)]
    held_out: Annotated[DataFile | None, BeforeValidator(_as_mapping)] = None


class Kind(BaseModel):
    """What every `objective.yaml` may say."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    natural_direction: ClassVar[Direction] = "maximise"
    name: str
    direction: Direction | None = None

    def describe(self) -> dict[str, Any]:
        """Everything that defines the scores but the data, as JSON."""
        return self.model_dump(mode="json", exclude={"data"})


class Answer(Kind):
    """Generated answer against the reference, by a metric."""

    kind: Literal["answer"]
    metric: Annotated[BoundMetric, BeforeValidator(bind_metric)]
    max_new_tokens: PositiveInt
    data: Data

    def check(self, item: Item) -> None:
        score = self.metric(_reference(item), _reference(item))
        if score != 1.0:
            raise ValueError(f"the reference scores {score} against itself by {self.metric.name}")

    def requests(self, item: Item) -> list[Request]:
        return [Generate(item.messages, self.max_new_tokens)]

    def score(self, item: Item, responses: Sequence[Response]) -> ItemScore:
        return ItemScore(self.metric(generated(responses).text, _reference(item)))

    def signal_requests(self, item: Item) -> list[Request]:
        reference = _reference(item)
        return [LogLikelihood(item.messages, reference, ended=True)] if reference else []

    def signal(self, item: Item, responses: Sequence[Response]) -> float:
        """Natural-log probability of the reference answer, each token given those before it.

        Its end belongs to it: a model that goes on is as wrong as one that says something else.
        """
        return sum(likelihood(r).logprob for r in responses)  # of nothing it is 0

    def aggregate(self, scores: Sequence[ItemScore]) -> Value:
        return mean(scores)


class Choice(Kind):
    """Multiple choice: 1 if the likeliest choice is the reference (the first one wins a tie).

    `normalise` divides each log-likelihood by the choice's length in tokens or in characters.
    """

    kind: Literal["choice"]
    normalise: Literal["tokens", "characters"] | None = None
    data: Data

    def check(self, item: Item) -> None:
        if item.choices is None:
            raise ValueError("an item of a choice objective needs 'choices'")
        _reference(item)

    def requests(self, item: Item) -> list[Request]:
        return [LogLikelihood(item.messages, choice) for choice in item.choices or ()]

    def score(self, item: Item, responses: Sequence[Response]) -> ItemScore:
        scores = self._scores(item, responses)
        return ItemScore(float(max(scores, key=lambda choice: scores[choice]) == item.answer))

    def signal_requests(self, item: Item) -> list[Request]:
        return self.requests(item)

    def signal(self, item: Item, responses: Sequence[Response]) -> float:
        """How far the right choice is above the best wrong one, in what decides the score."""
        scores = self._scores(item, responses)
        right = scores.pop(_reference(item))
        return right - max(scores.values())

    def aggregate(self, scores: Sequence[ItemScore]) -> Value:
        return mean(scores)

    def _scores(self, item: Item, responses: Sequence[Response]) -> dict[str, float]:
        return {
            choice: likelihood(r).logprob / self._length(choice, likelihood(r))
            for choice, r in zip(item.choices or (), responses, strict=True)
        }

    def _length(self, choice: str, likelihood: Likelihood) -> int:
        return {None: 1, "tokens": likelihood.tokens, "characters": len(choice)}[self.normalise]


class Perplexity(Kind):
    """Corpus perplexity of the reference answers (their text alone, without an end token)."""

    natural_direction: ClassVar[Direction] = "minimise"
    kind: Literal["perplexity"]
    data: Data

    def check(self, item: Item) -> None:
        if not _reference(item):
            raise ValueError("the reference answer is empty")

    def requests(self, item: Item) -> list[Request]:
        return [LogLikelihood(item.messages, _reference(item))]

    def score(self, item: Item, responses: Sequence[Response]) -> ItemScore:
        found = likelihood(responses[0])
        return ItemScore(-found.logprob / found.tokens, found.tokens)

    def aggregate(self, scores: Sequence[ItemScore]) -> Value:
        return corpus_perplexity(scores)


class Length(Kind):
    """Mean number of generated tokens, the end token included."""

    natural_direction: ClassVar[Direction] = "minimise"
    kind: Literal["length"]
    max_new_tokens: PositiveInt
    data: Data

    def check(self, item: Item) -> None:
        """Every item can be answered at some length."""

    def requests(self, item: Item) -> list[Request]:
        return [Generate(item.messages, self.max_new_tokens)]

    def score(self, item: Item, responses: Sequence[Response]) -> ItemScore:
        return ItemScore(float(generated(responses).tokens))

    def aggregate(self, scores: Sequence[ItemScore]) -> Value:
        return mean(scores)


class Sparsity(Kind):
    """Share of the moved elements that equal the base; no items are asked."""

    kind: Literal["sparsity"]

    def weigh(self, stats: WeightStats) -> ItemScore:
        """The one score of a candidate; a candidate that moves nothing has sparsity 1."""
        return ItemScore(stats.unchanged / stats.moved if stats.moved else 1.0)

    def aggregate(self, scores: Sequence[ItemScore]) -> Value:
        return Value(scores[0].value, 0.0, 1)


ItemKind = Answer | Choice | Perplexity | Length
KINDS: dict[str, type[ItemKind] | type[Sparsity]] = {
    "answer": Answer,
    "choice": Choice,
    "perplexity": Perplexity,
    "length": Length,
    "sparsity": Sparsity,
}


def register_kind(kind: type[ItemKind]) -> type[ItemKind]:
    """Makes a class of one's own a kind of objective, by the value of its field ``kind``."""
    (name,) = get_args(kind.model_fields["kind"].annotation)
    if name in KINDS:
        raise ValueError(f"objective kind {name!r} is registered twice")
    KINDS[name] = kind
    return kind


def _reference(item: Item) -> str:
    if item.answer is None:
        raise ValueError("the item has no reference answer ('answer', or a last assistant message)")
    return item.answer


def generated(responses: Sequence[Response]) -> Generated:
    """The one response, which is a text."""
    (response,) = responses
    if not isinstance(response, Generated):
        raise TypeError(f"expected a generated answer, got {type(response).__name__}")
    return response


def likelihood(response: Response) -> Likelihood:
    """The response, which is a likelihood. Raises CandidateError if it is not finite."""
    if not isinstance(response, Likelihood):
        raise TypeError(f"expected a likelihood, got {type(response).__name__}")
    if not math.isfinite(response.logprob):
        raise CandidateError(f"log-likelihood is {response.logprob}; the merged model is broken")
    return response
