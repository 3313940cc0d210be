"""A tiny Llama with full and LoRA experts, and tasks whose answers are what an expert says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.config import load_experiment
from evomerge.engine.study import open_study
from evomerge.learning.session import Session, open_session
from tests.merging import lora_expert, tensors_of, with_tensors
from tests.models import tiny_llama

EXPERTS = ("adds", "names")
PROMPTS = ("one and", "the colour of", "what is it", "in the end", "a or b", "how many")
ANSWER_TOKENS = 3
ANSWERS = ("ab", "no", "in")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, experts NAME that know their task, noise NAME-lora, and data of the tasks."""
    root = tmp_path_factory.mktemp("learning")
    base = tiny_llama(root / "base")
    for seed, name in enumerate(EXPERTS, 1):
        items = [(f"{name} {prompt}", ANSWERS[(i + seed) % 3]) for i, prompt in enumerate(PROMPTS)]
        _trained(base, root / name, items)
        lora_expert(base, root / f"{name}-lora", seed)
        others = [(f"{prompt}?", answer) for prompt, answer in items]
        for split, asked in (("search", items), ("held_out", others)):
            lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in asked]
            (root / f"{name}.{split}.jsonl").write_text("\n".join(lines) + "\n")
    return root


def _trained(base: Path, out: Path, items: list[tuple[str, str]]) -> Path:
    """A full expert that gives those answers; only attention and MLP matrices differ."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    moved = {n: p for n, p in model.named_parameters() if "_proj" in n}
    optimiser = torch.optim.Adam(moved.values(), 0.01)
    for _ in range(25):
        optimiser.zero_grad()
        for prompt, answer in items:
            asked = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            said = tokenizer(answer + tokenizer.eos_token, return_tensors="pt")["input_ids"]
            shown = torch.cat([tokenizer(asked, return_tensors="pt")["input_ids"], said], dim=1)
            count = said.shape[1]
            logits = model(shown).logits[0, -count - 1 : -1]
            torch.nn.functional.cross_entropy(logits, said[0]).backward()
        optimiser.step()
    tensors = tensors_of(base)
    return with_tensors(
        base, out, {n: moved[n].detach() if n in moved else tensors[n] for n in tensors}
    )


def task(expert: str, **changes: Any) -> dict[str, Any]:
    """The objective of an expert's task, written inline."""
    generated = {"kind": "answer", "metric": "contains", "max_new_tokens": ANSWER_TOKENS}
    return {**surprise_of(expert), **generated, **changes}


def surprise_of(expert: str) -> dict[str, Any]:
    """The perplexity of the same answers."""
    data = {split: f"{expert}.{split}.jsonl" for split in ("search", "held_out")}
    return {"name": expert, "kind": "perplexity", "data": data}


def written(folder: Path, path: Path, lora: bool = False, **changes: Any) -> Path:
    """An experiment file; everything in it is named relative to ``folder``."""
    content = {
        "base": str(folder / "base"),
        "experts": {name: str(folder / f"{name}{'-lora' if lora else ''}") for name in EXPERTS},
        "space": "layerwise-task-arithmetic",
        "objectives": [task(name) for name in EXPERTS],
        "optimise": {"maximise": ["mean"]},
        "search": {"algorithm": "random", "seed": 3},
        "budget": {"candidates": 1},
        "backend": {"name": "transformers", "device": "cpu", "batch": 4},
        **changes,
    }
    for objective in content["objectives"]:
        data = objective.get("data", {})
        objective["data"] = {split: str(folder / file) for split, file in data.items()}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def opened(folder: Path, tmp_path: Path) -> Iterator[Callable[..., Session]]:
    """Opens a session on the tiny experiment; keywords change it."""
    sessions: list[Session] = []

    def make(seed: int = 0, items_for: tuple[tuple[str, str], ...] = (), **changes: Any) -> Session:
        path = written(folder, tmp_path / f"e{len(sessions)}.yaml", **changes)
        sessions.append(open_session(open_study(load_experiment(path)), seed, items_for))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()
