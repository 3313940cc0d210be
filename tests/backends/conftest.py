from __future__ import annotations

import base64
import io

import pytest

from evomerge.scoring.requests import Generate, LogLikelihood
from tests.models import tiny_llama, tiny_qwen2_vl


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def other_llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama", seed=1)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    return tiny_qwen2_vl(tmp_path_factory.mktemp("models") / "qwen")


@pytest.fixture(scope="session")
def other_qwen(tmp_path_factory):
    return tiny_qwen2_vl(tmp_path_factory.mktemp("models") / "qwen", seed=1)


def picture(seed: int, width: int = 28, height: int = 28) -> str:
    """A PNG of noise as a data URI."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def text_messages(text: str):
    return ({"role": "user", "content": text},)


def image_messages(seed: int, text: str, **size):
    parts = ({"type": "image", "image": picture(seed, **size)}, {"type": "text", "text": text})
    return ({"role": "user", "content": parts},)


def text_requests(count: int = 7):
    """Prompts of different lengths, generated from and scored."""
    prompts = [text_messages("the " * (1 + 3 * i % 5) + f"number {i}") for i in range(count)]
    return [Generate(m, 1 + i % 6) for i, m in enumerate(prompts)] + [
        LogLikelihood(m, "ab" * (1 + i % 3)) for i, m in enumerate(prompts)
    ]


def image_requests(count: int = 6):
    """As above with one image each, of two sizes, and one prompt with two images."""
    prompts = [
        image_messages(i, "the " * (i % 4) + "what", width=28 if i % 2 else 14)
        for i in range(count)
    ]
    twice = image_messages(90, "and")[0]["content"] + image_messages(91, "differ?")[0]["content"]
    prompts.append(({"role": "user", "content": twice},))
    return [Generate(m, 4) for m in prompts] + [LogLikelihood(m, "in the") for m in prompts]
