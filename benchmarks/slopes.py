"""What slopes of a probe take beside its signals alone: one command, one line a case.

    OMP_NUM_THREADS=1 python -m benchmarks.slopes

A Llama of random weights with three full experts on one thread of a CPU. Times are the process's
own, so that what runs beside it counts little; the least of three.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.backends.config import TransformersConfig
from evomerge.checkpoints.sources import open_sources
from evomerge.engine import slopes
from evomerge.engine.tasks import Task
from evomerge.engine.worker import Worker
from evomerge.recipe import Group, Recipe, Source
from evomerge.scoring.blocks import Part
from evomerge.scoring.data import Item
from evomerge.scoring.measures import KINDS
from evomerge.scoring.objectives import Objective
from tests.merging import full_expert
from tests.models import tiny_tokenizer, vocabulary_size

ITEMS, EXPERTS, LAYERS, WIDTH = 20, 3, 8, 512


def base(path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=vocabulary_size(),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def objective(length: int) -> Objective:
    items = tuple(
        Item(str(i), ({"role": "user", "content": f"{i} " + "y" * length},), "ab")
        for i in range(ITEMS)
    )
    written = {"name": "it", "kind": "answer", "metric": "exact_match", "max_new_tokens": 2}
    measure = KINDS["answer"].model_validate({**written, "data": {"search": "x"}})
    return Objective("it", "maximise", measure, {"search": items})


def seconds(worker: Worker, recipe: Recipe, with_slopes: bool) -> tuple[float, float]:
    """Of one probe of all items that is in the model already, and of these of its pull back."""
    pulled = [0.0]
    draw_back = slopes.draw_back

    def timed(*arguments: Any) -> Any:
        started = time.process_time()
        drawn = draw_back(*arguments)
        pulled[0] += time.process_time() - started
        return drawn

    task = Task(0, recipe, "search", Part(tuple(range(ITEMS)), True, with_slopes))
    with patch.object(slopes, "draw_back", timed):
        started = time.process_time()
        [outcome] = worker.run([task])
        took = time.process_time() - started
    assert outcome.seen is not None, outcome.reason
    return took, pulled[0]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = base(root / "base")
        experts = {f"e{i}": str(full_expert(model, root / f"e{i}", i)) for i in range(EXPERTS)}
        sources = open_sources(str(model), experts)
        parameters = sum(torch.Size(t.shape).numel() for t in sources.base.tensors.values())
        groups = tuple(
            Group.model_validate({"tensors": f"language/{i}/{kind}", "weight": 0.3})
            for i in range(LAYERS)
            for kind in ("attention", "mlp")
        )
        recipe = Recipe(
            base=Source(path=str(model)),
            experts={name: Source(path=path) for name, path in experts.items()},
            method="task_arithmetic",
            parameters=groups,
        )
        for length in (20, 180):
            worker = Worker(sources, (objective(length),), TransformersConfig(device="cpu"))
            worker.run([Task(0, recipe, "search", Part((0,), True))])  # merges, and makes prompts
            plain = min(seconds(worker, recipe, False)[0] for _ in range(3))
            sloped, pulled = min(seconds(worker, recipe, True) for _ in range(3))
            worker.close()
            print(
                f"{parameters / 1e6:.0f} M parameters, {EXPERTS} experts, {ITEMS} items of "
                f"{length} letters: signals {plain:.2f} s, slopes {sloped:.2f} s "
                f"({sloped / plain:.2f} times), of which drawing back {pulled:.2f} s"
            )


if __name__ == "__main__":
    main()
