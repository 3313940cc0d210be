"""Objectives: `objective.yaml` and its data files as something that asks, scores and aggregates.

name: zoo/vqa
kind: answer                    # answer, choice, perplexity, length, sparsity, lm-eval
metric: {name: exact_match}     # answer only
max_new_tokens: 6               # answer and length
direction: maximise             # optional; perplexity and length are minimised by default
data:
  search: {file: search.jsonl, sha256: ...}
  held_out: {file: held_out.jsonl, sha256: ...}     # optional
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evomerge.content import find
from evomerge.documents import Document, did_you_mean, read_yaml, validate
from evomerge.errors import ConfigError, DataError
from evomerge.scoring.data import Item, content_key, load_items
from evomerge.scoring.harness.kind import HarnessTask, LmEval, load_task
from evomerge.scoring.measures import (
    KINDS,
    Direction,
    ItemKind,
    Signalling,
    Sparsity,
    WeightStats,
)
from evomerge.scoring.requests import Request, Response
from evomerge.scoring.statistics import ItemScore, Value

Split = Literal["search", "held_out"]
LM_EVAL = "lm-eval"


@dataclass(frozen=True)
class Objective:
    """A measure with its data. `direction` says which way `aggregate(...).value` is better."""

    name: str
    direction: Direction
    measure: ItemKind | Sparsity | HarnessTask
    splits: Mapping[Split, tuple[Item, ...]] = field(default_factory=dict)
    sha256: Mapping[Split, str] = field(default_factory=dict)

    def items(self, split: Split) -> tuple[Item, ...]:
        """Items of a split; none where the objective has no such data."""
        return self.splits.get(split, ())

    def requests(self, item: Item) -> list[Request]:
        """What is asked of the model about an item."""
        if isinstance(self.measure, Sparsity):
            raise TypeError(f"objective {self.name}: sparsity asks nothing about items")
        return self.measure.requests(item)

    def score(self, item: Item, responses: Sequence[Response]) -> ItemScore:
        """Score of an item from the responses to its requests, in their order."""
        if isinstance(self.measure, Sparsity):
            raise TypeError(f"objective {self.name}: sparsity scores no items")
        return self.measure.score(item, responses)

    @property
    def has_signal(self) -> bool:
        """Whether items have a signal beside their score; see `evomerge.scoring.measures`."""
        return isinstance(self.measure, Signalling)

    def signal_requests(self, item: Item) -> list[Request]:
        """What is asked of the model for the signal of an item."""
        return self._signalling().signal_requests(item)

    def signal(self, item: Item, responses: Sequence[Response]) -> float:
        """Signal of an item from the responses to those requests, in their order."""
        return self._signalling().signal(item, responses)

    def _signalling(self) -> Signalling:
        if not isinstance(self.measure, Signalling):
            raise TypeError(f"objective {self.name}: its kind has no signal")
        return self.measure

    def weigh(self, stats: WeightStats) -> ItemScore | None:
        """The score that comes from the weights alone; None for an objective that has items."""
        return self.measure.weigh(stats) if isinstance(self.measure, Sparsity) else None

    def aggregate(self, scores: Sequence[ItemScore]) -> Value:
        """Value and standard error over the scores of items."""
        return self.measure.aggregate(scores)

    def describe(self) -> dict[str, Any]:
        """Everything that defines the scores, as JSON: its typed form and its data's sha256."""
        return {
            **self.measure.describe(),
            "direction": self.direction,
            "sha256": dict(self.sha256),
        }


def load_objective(source: str | Mapping[str, Any], base_dir: Path) -> Objective:
    """An objective by name ("zoo/vqa"), by the path of its YAML file or folder, or written inline.

    Paths count from `base_dir`; the data files of a YAML file from its own folder.

    Raises:
        ConfigError: no such objective, or a wrong key or value in it.
        DataError: a data file is missing, not the declared one, or holds an unusable item.
    """
    document, folder = _document(source, base_dir)
    kind = document.data.get("kind") if isinstance(document.data, Mapping) else None
    if not isinstance(kind, str) or kind not in (*KINDS, LM_EVAL):
        hint = did_you_mean(str(kind), [*KINDS, LM_EVAL])
        raise ConfigError(
            f"{document.where(('kind',))}: objective of unknown kind {kind!r}; {hint}"
        )
    if kind == LM_EVAL:
        task = load_task(validate(LmEval, document), folder)
        direction = task.spec.direction or task.natural_direction
        return Objective(task.name, direction, task, task.splits, task.sha256)
    measure = validate(KINDS[kind], document)
    direction = measure.direction or measure.natural_direction
    if isinstance(measure, Sparsity):
        return Objective(measure.name, direction, measure)
    splits, hashes = _load_splits(measure, folder)
    return Objective(measure.name, direction, measure, splits, hashes)


def _document(source: str | Mapping[str, Any], base_dir: Path) -> tuple[Document, Path]:
    if isinstance(source, Mapping):
        return Document(dict(source)), base_dir
    path = base_dir / Path(source).expanduser()
    if path.is_dir() and (path / "objective.yaml").is_file():
        path = path / "objective.yaml"
    elif path.suffix not in (".yaml", ".yml"):
        path = find("objectives", source)
    return read_yaml(path), path.parent


def _load_splits(
    measure: ItemKind, folder: Path
) -> tuple[dict[Split, tuple[Item, ...]], dict[Split, str]]:
    splits: dict[Split, tuple[Item, ...]] = {}
    hashes: dict[Split, str] = {}
    files = {"search": measure.data.search, "held_out": measure.data.held_out}
    names: tuple[Split, Split] = ("search", "held_out")
    for split in names:
        declared = files[split]
        if declared is None:
            continue
        path = folder / declared.file
        splits[split] = tuple(load_items(path, declared.sha256))
        hashes[split] = hashlib.sha256(path.read_bytes()).hexdigest()
        for item in splits[split]:
            try:
                measure.check(item)
            except ValueError as error:
                raise DataError(f"{path}, item {item.id}: {error}") from None
    _refuse_overlap(measure.name, splits)
    return splits, hashes


def _refuse_overlap(name: str, splits: Mapping[Split, Sequence[Item]]) -> None:
    searched = {content_key(item): item.id for item in splits.get("search", ())}
    for item in splits.get("held_out", ()):
        twin = searched.get(content_key(item))
        if twin is not None:
            raise DataError(
                f"objective {name}: held-out item {item.id} asks the same as search item {twin}; "
                "the held-out split must hold only what the search never sees"
            )
