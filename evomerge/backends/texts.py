"""From requests to texts and tokens, without a model: what any backend with a tokeniser needs."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.errors import CheckpointError, DataError
from evomerge.scoring.data import image_bytes
from evomerge.scoring.requests import Asked, Generate, LogLikelihood, Message, Request, Rolling

_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")  # of different architectures
_NO_LENGTH = 2048
_UNSET = 10**9  # tokenisers write a number beyond it where they know of no limit


class Texts:
    """Renders with the checkpoint's own chat template and tokenises with its own tokeniser.

    Without a chat template the texts of a conversation are joined by line ends and continued.
    `length` is the longest input in tokens, by default what the checkpoint declares. `end` is the
    token at which an answer ends, None where there is none.
    """

    def __init__(self, path: Path, config: Any, length: int | None = None) -> None:
        """Raises CheckpointError if there is no usable tokeniser or image processor at `path`."""
        self.processor = load_processor(path, config)
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.multimodal = self.processor is not self.tokenizer
        self.length = length or context_length(config, self.tokenizer)
        self.end = _end(path, config, self.tokenizer)
        self._chat = next(
            (r for r in (self.processor, self.tokenizer) if getattr(r, "chat_template", None)),
            None,
        )

    def render(self, asked: Asked) -> str:
        """The text of a conversation with one placeholder an image, or the text that is asked.

        Raises:
            DataError: images for a model that reads text only, or what the template refuses.
        """
        if isinstance(asked, str):
            return asked
        has_images = bool(image_sources(asked))
        if has_images and not self.multimodal:
            raise DataError("an item has images, but the base model reads text only")
        if self._chat is None:
            if has_images:
                raise DataError(
                    "an item has images, but the base has no chat template to place them"
                )
            return "\n".join(_text(message) for message in asked)
        shaped = [
            {"role": m["role"], "content": _parts(m) if self.multimodal else _text(m)}
            for m in asked
        ]
        begun = asked[-1]["role"] == "assistant"
        try:
            text: str = self._chat.apply_chat_template(
                shaped,
                tokenize=False,
                add_generation_prompt=not begun,
                continue_final_message=begun,
            )
        except Exception as error:  # whatever a template raises, it is about these messages
            raise DataError(f"the base's chat template refuses an item: {error}") from error
        return text

    def ids(self, asked: Asked) -> list[int]:
        """Tokens of what is asked; of an image only its placeholder."""
        text = self.render(asked)
        found = self._encode(text, self._special(asked, text))
        return found or [self._first()]

    def continuation(self, request: LogLikelihood) -> list[int]:
        """Tokens of the continuation; at least one.

        The prompt keeps the very tokens that generation would see. After a conversation the
        continuation's are those of the joint text where that leaves the prompt's alone, else those
        of its own text: a token that spans the boundary could never be generated there. After a
        text see `LogLikelihood`.

        Raises:
            DataError: it has no tokens.
        """
        prompt, text = self.render(request.messages), request.continuation
        own = self._encode(text, False)
        if not own:
            raise DataError(f"the continuation {text!r} has no tokens")
        if request.ended and self.end is not None:
            return [*self.continuation(replace(request, ended=False)), self.end]
        if prompt == "":
            return own[1:] if own[0] == self._first() and len(own) > 1 else own
        special = self._special(request.messages, prompt)
        alone, joint = self._encode(prompt, special), self._encode(prompt + text, special)
        if isinstance(request.messages, str) or joint[: len(alone)] == alone:
            return joint[len(alone) :] or own
        return own

    def rows(self, request: Request) -> list[tuple[list[int], int]]:
        """What to run for a request without images: tokens, and how many of the last are scored.

        One row with 0 for what is generated; several for a text that is longer than the context.

        Raises:
            DataError: it does not fit into the model's context.
        """
        if isinstance(request, Rolling):
            ids = self.begun(request)
            return [(ids[start:end], scored) for start, end, scored in self.windows(len(ids))]
        ids, scored = self.ids(request.messages), 0
        if isinstance(request, LogLikelihood):
            tokens = self.continuation(request)
            ids, scored = ids + tokens, len(tokens)
        return [(ids[-self.fitting(request, len(ids), scored) :], scored)]

    def fitting(self, request: Generate | LogLikelihood, length: int, scored: int) -> int:
        """How many of the last of `length` tokens the model can hold; all, after a conversation.

        The last token of a row that is scored is never an input.

        Raises:
            DataError: not even what must be there fits.
        """
        if not isinstance(request.messages, str):
            return length
        if isinstance(request, Generate):
            room, needed, what = self.length - request.max_new_tokens, 1, "generated"
        else:
            room, needed, what = self.length + 1, scored + 1, "scored"
        if room < needed:
            count = request.max_new_tokens if isinstance(request, Generate) else scored
            raise DataError(
                f"{count} {what} tokens do not fit into the model's context of {self.length}; "
                "ask for fewer"
            )
        return min(length, room)

    def begun(self, request: Rolling) -> list[int]:
        """Tokens of a whole text after the one that begins a text."""
        ids = self._encode(request.text, self._special(request.text, request.text))
        if not ids:
            raise DataError(f"the text {request.text!r:.80} has no tokens")
        return [self._first(), *ids]

    def windows(self, tokens: int) -> list[tuple[int, int, int]]:
        """Windows over a begun text of so many tokens: start, end, and how many are scored.

        Each but the last is as long as the context and follows one token; the last has as much
        context as fits.
        """
        ends = range(self.length, tokens, self.length)
        found = [(end - self.length, end + 1, self.length) for end in ends]
        if rest := (tokens - 1) % self.length:
            found.append((max(0, tokens - self.length - 1), tokens, rest))
        return found

    def _encode(self, text: str, special: bool) -> list[int]:
        tokens: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return tokens

    def _special(self, asked: Asked, text: str) -> bool:
        """Whether the tokeniser adds special tokens: a chat template has written its own."""
        if not isinstance(asked, str):
            return self._chat is None
        first = self.tokenizer.bos_token or self.tokenizer.eos_token
        return not (first and text.startswith(first))

    def _first(self) -> int:
        """The token that begins a text, or the one that ends it where a model has no other."""
        tokenizer = self.tokenizer
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise DataError("an empty text needs a token to begin with; the tokeniser has none")


def _end(path: Path, config: Any, tokenizer: Any) -> int | None:
    """The tokeniser's own end token, if generation stops there; else the first at which it does."""
    from transformers import GenerationConfig

    stops = getattr(getattr(config, "text_config", None) or config, "eos_token_id", None)
    if (path / "generation_config.json").is_file():
        declared = GenerationConfig.from_pretrained(path, local_files_only=True).eos_token_id
        stops = stops if declared is None else declared
    own = tokenizer.eos_token_id
    known = [stops] if isinstance(stops, int) else list(stops or [])
    return own if own in known or not known else int(known[0])


def context_length(config: Any, tokenizer: Any) -> int:
    """The longest input in tokens that a checkpoint declares, 2048 if it declares none."""
    config = getattr(config, "text_config", None) or config
    for name in _LENGTHS:
        if (length := getattr(config, name, None)) is not None:
            return int(length)
    length = getattr(tokenizer, "model_max_length", None)
    return int(length) if length is not None and length < _UNSET else _NO_LENGTH


def image_sources(asked: Asked) -> list[str]:
    """Where the images of a conversation are, in order: `data:` URIs or paths."""
    if isinstance(asked, str):
        return []
    return [
        part["image"]
        for message in asked
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image"
    ]


def open_image(source: str) -> Any:
    """A PIL image in RGB. Raises DataError if it cannot be decoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(image_bytes(source))).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"image {source!r:.60} cannot be decoded: {error}") from None


def load_processor(path: Path, config: Any) -> Any:
    """The checkpoint's processor with its PIL image processor, or its tokeniser for a text model.

    Raises:
        CheckpointError: there is none at `path`, or it cannot be loaded.
    """
    from transformers import AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        if type(config) in PROCESSOR_MAPPING and hasattr(config, "vision_config"):
            return _still_pictures(PROCESSOR_MAPPING[type(config)]).from_pretrained(path)
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers raises what it likes for a missing file
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: its tokeniser or image processor cannot be loaded ({reason}); copy the "
            "tokenizer and preprocessor files of the original model into it"
        ) from error


def _still_pictures(processor: Any) -> Any:
    """A processor class without its video part, which cannot be loaded without torchvision."""

    def load_parts(
        cls: Any, /, path: Path, processor_dict: Any = None, **options: Any
    ) -> list[Any]:
        from transformers import AutoImageProcessor, AutoTokenizer

        loaders = {
            "tokenizer": lambda: AutoTokenizer.from_pretrained(path, local_files_only=True),
            "image_processor": lambda: AutoImageProcessor.from_pretrained(
                path, backend="pil", local_files_only=True
            ),
        }
        return [loaders[n]() if n in loaders else None for n in cls.get_attributes()]

    return type(
        processor.__name__,
        (processor,),
        {
            "_get_arguments_from_pretrained": classmethod(load_parts),
            "check_argument_for_proper_class": lambda self, name, argument: None,
        },
    )


def _text(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _parts(message: Message) -> list[dict[str, str]]:
    content = message["content"]
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{"type": "image"} if p["type"] == "image" else dict(p) for p in content]
