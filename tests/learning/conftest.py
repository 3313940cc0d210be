"""A tiny Llama with full and LoRA experts, and tasks whose answers are what an expert says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.backends.transformers import TransformersBackend
from evomerge.config import load_experiment
from evomerge.engine.study import open_study
from evomerge.learning.session import Session, open_session
from evomerge.scoring.requests import Generate
from tests.merging import full_expert, lora_expert, tensors_of
from tests.models import tiny_llama

EXPERTS = ("adds", "names")
PROMPTS = ("one and", "the colour of", "what is it", "in the end", "a or b", "how many")
ANSWER_TOKENS = 3


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, full experts NAME, adapters NAME-lora, and data of each task in NAME.jsonl."""
    root = tmp_path_factory.mktemp("learning")
    base = tiny_llama(root / "base")
    for seed, name in enumerate(EXPERTS, 1):
        full_expert(base, root / name, seed)
        lora_expert(base, root / f"{name}-lora", seed)
        for split in ("search", "held_out"):
            _write_task(root, name, split)
    return root


def _write_task(root: Path, name: str, split: str) -> None:
    """Items that the full expert of that name answers perfectly."""
    backend = TransformersBackend(root / "base", device="cpu")
    backend.open()
    backend.load(tensors_of(root / name))
    prompts = [f"{name} {prompt} {split}" for prompt in PROMPTS]
    asked = [Generate(({"role": "user", "content": prompt},), ANSWER_TOKENS) for prompt in prompts]
    lines = [
        json.dumps({"prompt": prompt, "answer": answer.text})
        for prompt, answer in zip(prompts, backend.run(asked), strict=True)
    ]
    (root / f"{name}.{split}.jsonl").write_text("\n".join(lines) + "\n")


def task(name: str, **changes: Any) -> dict[str, Any]:
    """An objective written inline."""
    return {
        "name": name,
        "kind": "answer",
        "metric": "contains",
        "max_new_tokens": ANSWER_TOKENS,
        "data": {"search": f"{name}.search.jsonl", "held_out": f"{name}.held_out.jsonl"},
        **changes,
    }


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
