"""From messages to model inputs: rendered, tokenised and images processed once per worker."""

from __future__ import annotations

import inspect
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import CheckpointError, DataError
from evomerge.scoring.data import image_bytes
from evomerge.scoring.requests import LogLikelihood, Message, Request


@dataclass(frozen=True)
class Prompt:
    """Inputs of one conversation.

    text: as rendered. ids: (length,) int64. positions: (..., 1, length) int64, whatever the model
    numbers positions by; None if it takes none. tokenwise: further inputs of shape (length,).
    pictures: inputs that are joined along their first axis, such as pixel values.
    """

    text: str
    ids: torch.Tensor
    positions: torch.Tensor | None
    tokenwise: Mapping[str, torch.Tensor]
    pictures: Mapping[str, torch.Tensor]

    @property
    def family(self) -> tuple[str, ...]:
        """Prompts of one family can share a batch."""
        shapes = (f"{name} {tuple(t.shape[1:])}" for name, t in sorted(self.pictures.items()))
        return (*sorted(self.tokenwise), *shapes)


class Prompter:
    """Makes prompts with the checkpoint's own chat template, tokeniser and image processor.

    Without a chat template the texts are joined by line ends. The PIL image processor is used
    everywhere, so that pixels do not depend on whether torchvision is installed.
    """

    def __init__(self, path: Path, model: Any) -> None:
        """Raises CheckpointError if there is no usable tokeniser or image processor at `path`."""
        self._model = model
        self._accepted = set(inspect.signature(model.forward).parameters)
        self._processor = load_processor(path, model.config)
        self.tokenizer = getattr(self._processor, "tokenizer", self._processor)
        self._chat = next(
            (r for r in (self._processor, self.tokenizer) if getattr(r, "chat_template", None)),
            None,
        )
        self._prompts: dict[str, Prompt] = {}
        self._continuations: dict[str, torch.Tensor] = {}

    def prompt(self, request: Request) -> Prompt:
        """The inputs of a request's messages, made once and kept: every candidate is asked them."""
        key = request.prompt_key
        if key not in self._prompts:
            self._prompts[key] = self._make(request.messages)
        return self._prompts[key]

    def continuation(self, request: LogLikelihood) -> torch.Tensor:
        """Tokens of the continuation, (length,) int64.

        The prompt keeps the very tokens that generation would see. The continuation's are those of
        the joint text where that leaves the prompt's alone, else those of its own text: a token
        that spans the boundary could never be generated after this prompt.
        """
        if request.key not in self._continuations:
            text = self.prompt(request).text
            alone, joint = self._tokens(text), self._tokens(text + request.continuation)
            own = self.tokenizer(request.continuation, add_special_tokens=False)["input_ids"]
            tokens = joint[len(alone) :] if joint[: len(alone)] == alone else own
            if not tokens:
                raise DataError(f"the continuation {request.continuation!r} has no tokens")
            self._continuations[request.key] = torch.tensor(tokens, dtype=torch.int64)
        return self._continuations[request.key]

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer(text, add_special_tokens=self._chat is None)["input_ids"]
        return tokens

    def _make(self, messages: Sequence[Message]) -> Prompt:
        images = [
            _open_image(part["image"])
            for message in messages
            if not isinstance(message["content"], str)
            for part in message["content"]
            if part["type"] == "image"
        ]
        text = self._render(messages, bool(images))
        inputs = self._encode(text, images)
        ids = inputs.pop("input_ids")
        tokenwise = {
            name: t for name, t in inputs.items() if name.endswith("_ids") and t.shape == ids.shape
        }
        pictures = {
            name: t.to(self._model.dtype) if t.is_floating_point() else t
            for name, t in inputs.items()
            if name not in tokenwise and name != "attention_mask"
        }
        positions = None
        if "position_ids" in self._accepted:
            with torch.no_grad():
                positions = self._model._prepare_position_ids_for_generation(
                    ids, {"input_ids": ids, "attention_mask": torch.ones_like(ids), **inputs}
                )
        return Prompt(text, ids[0], positions, {n: t[0] for n, t in tokenwise.items()}, pictures)

    def _render(self, messages: Sequence[Message], has_images: bool) -> str:
        multimodal = self._processor is not self.tokenizer
        if has_images and not multimodal:
            raise DataError("an item has images, but the base model reads text only")
        if self._chat is None:
            if has_images:
                raise DataError(
                    "an item has images, but the base has no chat template to place them"
                )
            return "\n".join(_text(message) for message in messages)
        shaped = [
            {"role": m["role"], "content": _parts(m) if multimodal else _text(m)} for m in messages
        ]
        try:
            text: str = self._chat.apply_chat_template(
                shaped, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # whatever a template raises, it is about these messages
            raise DataError(f"the base's chat template refuses an item: {error}") from error
        return text

    def _encode(self, text: str, images: list[Any]) -> dict[str, torch.Tensor]:
        if not images:
            encoded = self.tokenizer(
                text, add_special_tokens=self._chat is None, return_tensors="pt"
            )
        else:
            encoded = self._processor(
                text=[text], images=images, add_special_tokens=False, return_tensors="pt"
            )
        keep = self._accepted | {"input_ids", "attention_mask"}
        return {name: t for name, t in encoded.items() if name in keep}


def extended(prompt: Prompt, tokens: torch.Tensor) -> Prompt:
    """The prompt with further text tokens at its end."""
    count = len(tokens)
    positions = prompt.positions
    if positions is not None:
        further = positions[..., -1:] + torch.arange(1, count + 1)
        positions = torch.cat([positions, further], dim=-1)
    return replace(
        prompt,
        ids=torch.cat([prompt.ids, tokens]),
        positions=positions,
        tokenwise={n: torch.cat([t, t.new_zeros(count)]) for n, t in prompt.tokenwise.items()},
    )


def collate(prompts: Sequence[Prompt], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """One batch of prompts of one family, padded on the left so that all end in one column."""
    length = max(len(p.ids) for p in prompts)
    mask = [torch.ones_like(p.ids) for p in prompts]
    batch = {
        "input_ids": _stack([p.ids for p in prompts], length, pad),
        "attention_mask": _stack(mask, length, 0),
    }
    for name in prompts[0].tokenwise:
        batch[name] = _stack([p.tokenwise[name] for p in prompts], length, 0)
    for name in prompts[0].pictures:
        batch[name] = torch.cat([p.pictures[name] for p in prompts])
    positions = [p.positions for p in prompts if p.positions is not None]
    if positions:
        batch["position_ids"] = torch.cat([_left_pad(t, length, 0) for t in positions], dim=-2)
    return {name: tensor.to(device) for name, tensor in batch.items()}


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


def _open_image(source: str) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(image_bytes(source))).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"image {source!r:.60} cannot be decoded: {error}") from None


def _text(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _parts(message: Message) -> list[dict[str, str]]:
    content = message["content"]
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{"type": "image"} if p["type"] == "image" else dict(p) for p in content]


def _left_pad(tensor: torch.Tensor, length: int, value: int) -> torch.Tensor:
    padding: torch.Tensor = torch.nn.functional.pad(
        tensor, (length - tensor.shape[-1], 0), value=value
    )
    return padding


def _stack(rows: Sequence[torch.Tensor], length: int, value: int) -> torch.Tensor:
    return torch.stack([_left_pad(row, length, value) for row in rows])
