"""Signals of a real model are what a plain forward pass gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.backends.transformers import TransformersBackend
from evomerge.scoring.data import Item
from evomerge.scoring.measures import KINDS
from evomerge.scoring.objectives import Objective

DATA = {"search": "search.jsonl"}
ITEMS = [
    Item("1", ({"role": "user", "content": "2 + 2?"},), "4", ("4", "5", "22")),
    Item("2", ({"role": "user", "content": "sort c a b"},), "a b c", ("c b a", "a b c")),
    Item("3", ({"role": "user", "content": "say nothing much"},), "nothing", ("much", "nothing")),
]


def forced(path: Path, item: Item, answer: str, ended: bool) -> float:
    """Natural-log probability of an answer (and its end), one pass over prompt and answer."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    prompt = tokenizer.apply_chat_template(
        list(item.messages), add_generation_prompt=True, tokenize=False
    )
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    new = tokenizer(answer, add_special_tokens=False)["input_ids"]
    new += [tokenizer.eos_token_id] * ended
    with torch.no_grad():
        logits = model(torch.tensor([before + new])).logits[0].double()
    chosen = logits[len(before) - 1 : -1].log_softmax(-1)
    return float(chosen[range(len(new)), new].sum())


@pytest.mark.parametrize("kind", ["answer", "choice"])
def test_they_equal_a_teacher_forced_pass(llama: Path, kind: str) -> None:
    more = {"metric": "exact_match", "max_new_tokens": 3} if kind == "answer" else {}
    measure = KINDS[kind].model_validate({"name": "it", "kind": kind, "data": DATA, **more})
    objective = Objective("it", "maximise", measure)
    backend = TransformersBackend(llama)
    backend.open()
    requests = [objective.signal_requests(item) for item in ITEMS]
    responses = iter(backend.run([request for asked in requests for request in asked]))

    for item, asked in zip(ITEMS, requests, strict=True):
        signal = objective.signal(item, [next(responses) for _ in asked])
        right = forced(llama, item, item.answer or "", kind == "answer")
        wrong = [forced(llama, item, c, False) for c in item.choices or () if c != item.answer]
        expected = right if kind == "answer" else right - max(wrong)
        assert signal == pytest.approx(expected, abs=1e-3)
