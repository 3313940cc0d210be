"""What a backend is asked, and what it answers.

Requests are compared by content: two objectives that ask the same thing of the same messages make
equal keys, and the model is asked once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Message = Mapping[str, Any]
"""`{"role": ..., "content": text or [{"type": "text", "text": ...}, {"type": "image", "image":
data URI or absolute path}]}`, as `evomerge.scoring.data` normalises it."""


@dataclass(frozen=True)
class Generate:
    """Greedy continuation of a conversation, up to `max_new_tokens` tokens."""

    messages: tuple[Message, ...]
    max_new_tokens: int

    @cached_property
    def key(self) -> str:
        """Content hash (sha256 hex)."""
        return _key("generate", self.messages, self.max_new_tokens)

    @cached_property
    def prompt_key(self) -> str:
        """Content hash of the messages alone: what a prompt cache is keyed by."""
        return _key("prompt", self.messages)


@dataclass(frozen=True)
class LogLikelihood:
    """Log-probability of `continuation` as the assistant's answer to a conversation."""

    messages: tuple[Message, ...]
    continuation: str

    @cached_property
    def key(self) -> str:
        """Content hash (sha256 hex)."""
        return _key("likelihood", self.messages, self.continuation)

    @cached_property
    def prompt_key(self) -> str:
        """Content hash of the messages alone: what a prompt cache is keyed by."""
        return _key("prompt", self.messages)


Request = Generate | LogLikelihood


@dataclass(frozen=True)
class Generated:
    """Decoded text without special tokens; `tokens` counts what was generated, the end included."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Likelihood:
    """Natural-log probability of the whole continuation, and its number of tokens."""

    logprob: float
    tokens: int


Response = Generated | Likelihood


def _key(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()
