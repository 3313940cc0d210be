"""What the harness asks about each document of a task, and which documents belong to which split.

A task with a validation and a test split is searched on the first and finally scored on the second.
One with a single split, one whose few-shot examples come from the validation split, and one whose
share `held_out` is declared, is divided: a document is held out if a number in (0, 1) that is the
hash of its question lies below the share. So the division depends on no order and no seed, and
equal questions stay together. A document that asks what one of the search split asks is never held
out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice
from typing import Any, Literal

from evomerge.errors import ConfigError, DataError
from evomerge.scoring.data import Item
from evomerge.scoring.requests import Generate, LogLikelihood, Message, Request, Rolling

SEED = 1234  # the harness's own, of few-shot examples
SHARE = 0.5  # held out of a task that has a single split
_DEFAULT_TOKENS = 256  # as for the harness's models
_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_GREEDY = {"until", "do_sample", "temperature", "top_p", "top_k", *_TOKENS}


@dataclass(frozen=True)
class Shape:
    """How documents are asked about: what an objective may change of a task."""

    fewshot: int | None = None
    chat: bool = False
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Case:
    """A document with the harness's requests about it and ours, in the same order."""

    item: Item
    document: Mapping[str, Any]
    instances: tuple[Any, ...]
    requests: tuple[Request, ...]
    question: str  # hash of what is asked without examples


def divided(
    task: Any, shape: Shape, limit: int | None, held_out: float | None
) -> dict[Literal["search", "held_out"], tuple[Case, ...]]:
    """The documents of both splits, at most the first `limit` of each.

    Raises:
        ConfigError: the task cannot be asked like this.
        DataError: there is nothing to search on.
    """
    _set_examples(task, shape)
    both = task.has_validation_docs() and task.has_test_docs()
    validation, test = task.config.validation_split, task.config.test_split
    search: list[Case] = []
    held: list[Case] = []
    if both and held_out is None and _examples_from(task) != validation:
        search = list(islice(_cases(task, validation, task.validation_docs(), shape), limit))
        seen = {case.question for case in search}
        tested = _cases(task, test, task.test_docs(), shape)
        held = list(islice((case for case in tested if case.question not in seen), limit))
    else:
        share = SHARE if held_out is None else held_out
        for case in _cases(task, test or validation, task.eval_docs, shape):
            side = held if int(case.question[:13], 16) / 16**13 < share else search
            if limit is None or len(side) < limit:
                side.append(case)
            elif len(search) == limit and (len(held) == limit or not share):
                break
    if not search:
        raise DataError(
            f"lm-eval task {task.task_name}: no document to search on; lower the share held_out"
        )
    return {"search": tuple(search), "held_out": tuple(held)} if held else {"search": tuple(search)}


def sha256(cases: Sequence[Case]) -> str:
    """Hash of documents and requests in their order."""
    content = [[c.item.id, c.document, [r.key for r in c.requests]] for c in cases]
    text = json.dumps(content, sort_keys=True, default=_shown)
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(value: Any) -> str:
    """What JSON has no form for, without an address in memory."""
    return str(value) if isinstance(value, date | bytes) else type(value).__name__


def _set_examples(task: Any, shape: Shape) -> None:
    if shape.fewshot is not None:
        if task.config.num_fewshot == 0 and shape.fewshot:
            raise ConfigError(
                f"lm-eval task {task.task_name} is defined without examples (num_fewshot: 0); "
                "leave fewshot out, or copy the task's YAML file"
            )
        task.set_config("num_fewshot", shape.fewshot)
    elif task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)


def _examples_from(task: Any) -> str | None:
    """The split that few-shot examples are drawn from; None if they are drawn from none."""
    config, own = task.config, task.fewshot_cfg
    if not config.num_fewshot or (own.split is None and own.samples is not None):
        return None
    found: str | None = own.split or config.training_split or config.validation_split
    return found or config.test_split


def _cases(task: Any, split: str, documents: Any, shape: Shape) -> Iterator[Case]:
    """Documents in their order: the harness draws examples for one after the other."""
    task.set_fewshot_seed(SEED)
    for number, document in enumerate(documents):
        instances = _instances(task, document, number, task.config.num_fewshot, shape.chat)
        requests = tuple(_request(task, i, shape.max_new_tokens) for i in instances)
        bare = _instances(task, document, number, 0, shape.chat) if task.config.num_fewshot else ()
        plain = [_request(task, i, shape.max_new_tokens).key for i in bare]
        plain = plain or [r.key for r in requests]
        question = hashlib.sha256(" ".join(plain).encode()).hexdigest()
        item = _item(task, f"{split}/{number}", document, requests, shape.chat)
        yield Case(item, document, instances, requests, question)


def _instances(task: Any, document: Any, number: int, examples: int, chat: bool) -> tuple[Any, ...]:
    options = {"apply_chat_template": chat, "chat_template": _conversation if chat else None}
    context = task.fewshot_context(
        document,
        num_fewshot=examples,
        gen_prefix=task.doc_to_prefix(document),
        fewshot_as_multiturn=chat,
        **options,
    )
    made = task.construct_requests(
        doc=document,
        ctx=context,
        metadata=(task.config.task, number, task.config.repeats),
        **options,
    )
    return tuple(made) if isinstance(made, list) else (made,)


def _conversation(
    history: Sequence[Message], add_generation_prompt: bool = True
) -> tuple[Message, ...]:
    """In place of a chat template: the model's own is applied where it runs."""
    return tuple(history)


def _request(task: Any, instance: Any, max_new_tokens: int | None) -> Request:
    if instance.request_type == "loglikelihood_rolling":
        (text,) = instance.args
        return Rolling(text)
    context, rest = instance.args
    if instance.request_type == "generate_until":
        return Generate(context, *_generation(task, rest, max_new_tokens))
    if isinstance(context, str):  # the spaces at its end are scored, with the word that follows
        kept = context.rstrip()
        context, rest = kept, context[len(kept) :] + rest
    return LogLikelihood(context, rest)


def _generation(
    task: Any, options: Mapping[str, Any], max_new_tokens: int | None
) -> tuple[int, tuple[str, ...]]:
    """Number of tokens and stop strings."""
    if options.get("do_sample") or float(options.get("temperature") or 0) > 0:
        raise ConfigError(
            f"lm-eval task {task.task_name} samples its answers, evomerge decodes greedily; copy "
            "the task's YAML file with generation_kwargs: {do_sample: false}"
        )
    if unknown := sorted(options.keys() - _GREEDY):
        raise ConfigError(
            f"lm-eval task {task.task_name}: generation_kwargs {', '.join(unknown)} are not "
            "supported; copy the task's YAML file and leave them out"
        )
    until = options.get("until") or ()
    given = [int(options[name]) for name in _TOKENS if options.get(name) is not None]
    tokens = max_new_tokens or next(iter(given), _DEFAULT_TOKENS)
    return tokens, tuple(s for s in ([until] if isinstance(until, str) else until) if s)


def _item(task: Any, name: str, document: Any, requests: Sequence[Request], chat: bool) -> Item:
    """A document as an item like any other: what is asked first, and the right answer to it."""
    first = requests[0]
    if isinstance(first, Rolling):
        return Item(name, "", first.text)
    if isinstance(first, LogLikelihood) and task.OUTPUT_TYPE != "multiple_choice":
        return Item(name, first.messages, first.continuation)
    found = target(task, document)
    if isinstance(first, Generate):
        before = "" if chat else task.config.target_delimiter
        return Item(name, first.messages, None if found is None else f"{before}{found}")
    right = requests[found] if isinstance(found, int) and found in range(len(requests)) else None
    if isinstance(right, LogLikelihood):
        return Item(name, right.messages, right.continuation)
    return Item(name, first.messages)


def target(task: Any, document: Any) -> Any:
    """The first right answer: its index among the choices of a multiple choice, else its text."""
    multiple_choice = task.OUTPUT_TYPE == "multiple_choice"
    found = (task.doc_to_text if task.multiple_input else task.doc_to_target)(document)
    found = next(iter(found), None) if isinstance(found, list) else found
    if task.config.doc_to_choice is None:
        return found
    choices = task.doc_to_choice(document)
    if multiple_choice:
        return choices.index(found) if found in choices else found
    return choices[found] if isinstance(found, int) else found
