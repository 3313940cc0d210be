"""What a backend is asked, and what it answers.

Requests are compared by content: two objectives that ask the same thing of the same messages make
equal keys, and the model is asked once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Message = Mapping[str, Any]
"""`{"role": ..., "content": text or [{"type": "text", "text": ...}, {"type": "image", "image":
data URI or absolute path}]}`, as `evomerge.scoring.data` normalises it."""


Asked = tuple[Message, ...] | str
"""A conversation, to be answered; or a text, to be continued as it stands: no chat template, and
the special tokens that the tokeniser adds by itself (none if the text starts with its first one).
A conversation that ends with the assistant's message is continued within that message."""


@dataclass(frozen=True)
class Generate:
    """Greedy continuation, up to `max_new_tokens` tokens or the first of the strings `stop`.

    What is answered ends before the stop string. A text too long for the model loses its beginning.
    """

    messages: Asked
    max_new_tokens: int
    stop: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """Content hash (sha256 hex)."""
        stop = (self.stop,) if self.stop else ()
        return _key("generate", self.messages, self.max_new_tokens, *stop)

    @cached_property
    def prompt_key(self) -> str:
        """Content hash of the messages alone: what a prompt cache is keyed by."""
        return _key("prompt", self.messages)


@dataclass(frozen=True)
class LogLikelihood:
    """Log-probability of `continuation` as the answer to a conversation, or after a text.

    After a text its tokens are those that text and continuation have together beyond as many as the
    text has alone; after an empty text those of its own, after the token that begins a text.

    With ``ended`` the token at which an answer ends belongs to it, where the model has one.
    """

    messages: Asked
    continuation: str
    ended: bool = False

    @cached_property
    def key(self) -> str:
        """Content hash (sha256 hex)."""
        ended = (True,) if self.ended else ()
        return _key("likelihood", self.messages, self.continuation, *ended)

    @cached_property
    def prompt_key(self) -> str:
        """Content hash of the messages alone: what a prompt cache is keyed by."""
        return _key("prompt", self.messages)


@dataclass(frozen=True)
class Rolling:
    """Log-probability of a whole text, each token given those before it.

    The first one follows the token that begins a text. A text longer than the model's context is
    scored in windows of that length, each token once, in as few windows as there can be.
    """

    text: str

    @cached_property
    def key(self) -> str:
        """Content hash (sha256 hex)."""
        return _key("rolling", self.text)


Request = Generate | LogLikelihood | Rolling


@dataclass(frozen=True)
class Generated:
    """Decoded text without special tokens; `tokens` counts what was generated, the end included."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Likelihood:
    """Natural-log probability of the whole continuation, and its number of tokens.

    greedy: whether every token of it was the likeliest one.
    """

    logprob: float
    tokens: int
    greedy: bool


Response = Generated | Likelihood


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop strings."""
    for string in stop:
        text = text.split(string, 1)[0]
    return text


def _key(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()
