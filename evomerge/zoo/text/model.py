"""The text zoo's architecture, vocabulary and checkpoints: a Llama of a third of a million
parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evomerge.zoo import batches, store, words
from evomerge.zoo.paths import TEXT_TASKS
from evomerge.zoo.text import items
from evomerge.zoo.train import Course

USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
SPECIAL: Final = (words.PAD, USER, ASSISTANT, words.END, words.UNKNOWN)
VOCABULARY: Final = (*SPECIAL, *TEXT_TASKS, "+", *"0123456789", *items.LETTERS)
IDS: Final = {word: number for number, word in enumerate(VOCABULARY)}
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|> {% else %}<|user|> {% endif %}"
    "{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %} <|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LONGEST: Final = 8
"""Tokens of an answer, its end included."""


def config() -> Any:
    """The LlamaConfig of every model of the text zoo."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=IDS[words.END],
        pad_token_id=IDS[words.PAD],
    )


def new_model(seed: int) -> Any:
    """A model with fresh weights (float32), the same for the same seed."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(config())
    for module in model.modules():
        if isinstance(module, nn.Linear):  # the default of 0.02 is meant for wide layers
            nn.init.normal_(module.weight, std=module.in_features**-0.5 * 0.7)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.06)
    return model


def tokenizer() -> Any:
    """The tokenizer of every model of the text zoo: a letter, a digit or a task's name a token."""
    return words.tokenizer_of(IDS, SPECIAL, chat_template=CHAT_TEMPLATE, model_max_length=64)


def save(model: Any, directory: Path) -> None:
    """Write a complete Hugging Face directory; `model` itself is rounded to bfloat16."""
    store.save_weights(model, directory, IDS, LONGEST)
    tokenizer().save_pretrained(directory)
    store.for_every_reader(directory)


def prompt(question: str) -> list[int]:
    """Token numbers of a user's turn, up to where the answer begins."""
    return [IDS[word] for word in (USER, *question.split(), ASSISTANT)]


def sequence(question: str, answer: str) -> tuple[list[int], int]:
    """Token numbers of a whole conversation and where its answer begins."""
    asked = prompt(question)
    return asked + [IDS[word] for word in (*answer.split(), words.END)], len(asked)


def loss(model: Any, course: Course, step: int) -> Tensor:
    """Mean cross-entropy of the answers' tokens in the batch of one training step, all questions
    new.
    """
    rng = np.random.default_rng([course.seed, step])
    tasks = list(course.tasks)
    weights = np.asarray([course.tasks[task] for task in tasks])
    drawn = []
    for place in rng.choice(len(tasks), course.batch, p=weights / weights.sum()):
        shares = course.shares[tasks[place]]
        odds = np.asarray(list(shares.values()))
        form = list(shares)[rng.choice(len(odds), p=odds / odds.sum())]
        drawn.append(sequence(*items.draw(tasks[place], form, "train", rng)))
    tokens, answers = batches.pack(drawn)
    wanted = answers[:, 1:]
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[wanted]
    return F.cross_entropy(logits, tokens[:, 1:][wanted])


@torch.inference_mode()
def answers(model: Any, asked: Sequence[items.Item]) -> list[str]:
    """The model's greedy answer to each item: a batched decode without a cache."""
    rows = [prompt(one.question) for one in asked]
    ends = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(ends.max()) + LONGEST), IDS[words.PAD])
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    every = torch.arange(len(rows))
    starts = ends.clone()
    for _ in range(LONGEST):
        logits = model(input_ids=tokens[:, : int(ends.max())], use_cache=False).logits
        tokens[every, ends] = logits[every, ends - 1].argmax(-1)
        ends = ends + 1
    said = []
    for row, start in zip(tokens.tolist(), starts.tolist(), strict=True):
        answer = [VOCABULARY[token] for token in row[start : start + LONGEST]]
        said.append(" ".join(answer[: answer.index(words.END)] if words.END in answer else answer))
    return said


def accuracy(model: Any, task: str, split: str, count: int) -> float:
    """Share of the first `count` items of the split that the model answers exactly."""
    asked = items.questions(task, split, count)
    right = [said == one.answer for said, one in zip(answers(model, asked), asked, strict=True)]
    return float(np.mean(right))


def parameter_count() -> int:
    """Parameters of one model, tied ones once."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(config())
    return sum(parameter.numel() for parameter in model.parameters())
