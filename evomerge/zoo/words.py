"""The zoo's word-level vocabulary, its chat template, and the tokenizer made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from evomerge.zoo import draw
from evomerge.zoo.items import LARGEST_NUMBER

if TYPE_CHECKING:
    from collections.abc import Iterable

PAD: Final = "<|endoftext|>"
END: Final = "<|im_end|>"
IMAGE: Final = "<|image_pad|>"
VIDEO: Final = "<|video_pad|>"
UNKNOWN: Final = "<|unknown|>"
SPECIAL: Final = (
    PAD,
    "<|im_start|>",
    END,
    "<|vision_start|>",
    "<|vision_end|>",
    IMAGE,
    VIDEO,
    UNKNOWN,
)
_QUESTIONS: Final = (
    "what colour is the ? shape one there a how many of long line which longer shorter are both "
    "lines together value bar highest lowest read digits . left right digit from to larger smaller "
    "where row in column at"
)
VOCABULARY: Final = (
    *SPECIAL,
    "system",
    "user",
    "assistant",
    "describe",
    "none",
    "yes",
    "no",
    *_QUESTIONS.split(),
    *draw.COLOURS,
    *draw.SHAPES,
    *(str(number) for number in range(LARGEST_NUMBER + 1)),
)
IDS: Final = {word: number for number, word in enumerate(VOCABULARY)}

# Qwen2-VL's own form, without a default system turn.
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def encode(words: Iterable[str]) -> list[int]:
    """Token numbers of words; a word outside the vocabulary is a KeyError (a mistake in a
    generator).
    """
    return [IDS[word] for word in words]


def prompt(question: str, image_tokens: int = 4) -> list[int]:
    """Token numbers of a user turn with one image, up to where the answer begins."""
    return encode(
        f"<|im_start|> user <|vision_start|> {f'{IMAGE} ' * image_tokens}<|vision_end|> "
        f"{question} {END} <|im_start|> assistant".split()
    )


def tokenizer() -> Any:
    """The tokenizer of every multimodal model of the zoo."""
    return tokenizer_of(
        IDS,
        SPECIAL,
        chat_template=CHAT_TEMPLATE,
        extra_special_tokens={"image_token": IMAGE, "video_token": VIDEO},
        model_max_length=128,
    )


def tokenizer_of(ids: dict[str, int], special: Iterable[str], **settings: Any) -> Any:
    """A PreTrainedTokenizerFast over `ids`: words are what stands between white space."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **settings,
    )
