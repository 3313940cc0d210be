"""Requests as bodies for the server, and its answers as responses.

Text goes as token ids to ``/v1/completions``: the prompt is then that of the other backends, token
for token, whatever template the server has. Conversations with images go as messages to
``/v1/chat/completions``.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from evomerge.backends.texts import Texts, image_sources, open_image
from evomerge.errors import CandidateError, DataError, InputError
from evomerge.scoring.requests import (
    Generate,
    Generated,
    Likelihood,
    LogLikelihood,
    Message,
    Request,
    Response,
    Rolling,
    before_stop,
)

COMPLETIONS: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"
# Said in full: a server fills in what is missing from the model's generation_config.json.
GREEDY: Final = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "return_token_ids": True,
}
_NEVER: Final = -9999.0  # what vLLM writes for a log-probability of minus infinity


@dataclass(frozen=True)
class Call:
    """One request to the server: what is lacking is the model. ``scored`` are tokens at its end."""

    path: str
    body: Mapping[str, Any]
    scored: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        """What it takes in memory, roughly."""
        prompt = self.body.get("prompt")
        if prompt is not None:
            return 1000 + 36 * len(prompt)
        return 1000 + sum(len(str(message)) for message in self.body["messages"])


def calls(request: Request, texts: Texts) -> list[Call]:
    """What to ask the server for a request: several calls for a text longer than the context.

    Raises:
        DataError: the prompt cannot be made.
    """
    if not isinstance(request, Rolling) and image_sources(request.messages):
        return [_chat(request, texts)]
    made = []
    for row, count in texts.rows(request):
        body: dict[str, Any] = {**GREEDY, "prompt": row}
        if isinstance(request, Generate):
            body |= _until(request)
        else:
            body |= {"max_tokens": 1, "prompt_logprobs": 0}
        made.append(Call(COMPLETIONS, body, tuple(row[len(row) - count :])))
    return made


def response(
    request: Request, made: Sequence[Call], answers: Sequence[Any], tokenizer: Any
) -> Response:
    """What the server's answers to a request's calls say.

    Raises:
        CandidateError: a log-likelihood is not finite.
        DataError: the server reads a conversation with images otherwise than evomerge.
        InputError: an answer lacks what is needed.
    """
    try:
        if isinstance(request, Generate):
            return _generated(answers[0], request, tokenizer)
        scored = [_scored(c, answer) for c, answer in zip(made, answers, strict=True)]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"the server's answer lacks {error}, which a vLLM server gives; scores need its "
            "prompt_logprobs"
        ) from None
    sums = [total for total, _ in scored]
    if not all(_NEVER < value <= 0 for total in sums for value in total):
        raise CandidateError("log-likelihoods are not finite; the merged model is broken")
    return Likelihood(
        math.fsum(math.fsum(total) for total in sums),
        sum(len(total) for total in sums),
        all(best for _, best in scored),
    )


def _until(request: Generate) -> dict[str, Any]:
    body: dict[str, Any] = {"max_tokens": request.max_new_tokens}
    if request.stop:
        # special tokens are looked at too; the text is made of the token ids anyway
        body |= {"stop": list(request.stop), "skip_special_tokens": False}
    return body


def _chat(request: Generate | LogLikelihood, texts: Texts) -> Call:
    assert not isinstance(request.messages, str)
    texts.render(request.messages)  # says what is wrong with it, if anything
    messages = list(request.messages)
    if isinstance(request, Generate):
        begun = messages[-1]["role"] == "assistant"
        return Call(CHAT, {**GREEDY, **_until(request), **_messages(messages, begun)})
    answer = request.continuation
    if request.ended and texts.end is not None:
        answer += texts.tokenizer.decode([texts.end])
    continued = _continued(messages, answer)
    if texts.render(tuple(continued)) != texts.render(request.messages) + answer:
        raise DataError(
            f"the base's chat template changes the answer {request.continuation!r:.60} where it "
            "stands in a conversation, so the server cannot score it after images; use the "
            "backend transformers or vllm"
        )
    scored = {"max_tokens": 1, "prompt_logprobs": 0}
    body = {**GREEDY, **scored, **_messages(continued, begun=True)}
    return Call(CHAT, body, tuple(texts.continuation(request)))


def _continued(messages: Sequence[Message], text: str) -> list[Message]:
    """The conversation with a text at its end, as the assistant's message or its continuation."""
    last = messages[-1]
    if last["role"] != "assistant":
        return [*messages, {"role": "assistant", "content": text}]
    if isinstance(last["content"], str):
        return [*messages[:-1], {**last, "content": last["content"] + text}]
    return [*messages[:-1], {**last, "content": [*last["content"], {"type": "text", "text": text}]}]


def _messages(messages: Sequence[Message], begun: bool) -> dict[str, Any]:
    shaped = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [_part(part) for part in content]
        shaped.append({"role": message["role"], "content": content})
    return {
        "messages": shaped,
        "add_generation_prompt": not begun,
        "continue_final_message": begun,
    }


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "image":
        return {"type": "image_url", "image_url": {"url": _picture(part["image"])}}
    return {"type": "text", "text": part["text"]}


def _picture(source: str) -> str:
    """An image as a PNG in a data URI: its pixels in RGB, as the other backends take them."""
    stream = io.BytesIO()
    open_image(source).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _generated(answer: Any, request: Generate, tokenizer: Any) -> Generated:
    (choice,) = answer["choices"]
    tokens = choice.get("token_ids")
    if tokens is not None:
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        return Generated(before_stop(text, request.stop), len(tokens))
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    return Generated(before_stop(text or "", request.stop), answer["usage"]["completion_tokens"])


def _scored(call: Call, answer: Any) -> tuple[list[float], bool]:
    """Natural-log probabilities of a call's last tokens, and whether each was the likeliest."""
    (choice,) = answer["choices"]
    chat = call.path == CHAT
    count = len(call.scored)
    if chat and tuple(answer["prompt_token_ids"][-count:]) != call.scored:
        raise DataError(
            "the server's chat template puts something between a conversation with images and its "
            "answer; start it with the chat template of the base"
        )
    rows = (answer if chat else choice)["prompt_logprobs"][-count:]
    found = [row[str(token)] for row, token in zip(rows, call.scored, strict=True)]
    return [float(f["logprob"]) for f in found], all(f["rank"] == 1 for f in found)
