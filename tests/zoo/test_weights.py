"""The shipped checkpoints: small enough, loadable, as good as their card says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from evomerge.zoo import card, evaluate, items, measure, network, paths, store
from evomerge.zoo.paths import TASKS

pytest.importorskip("sklearn", reason="the OCR items are drawn from scikit-learn's digits")


@pytest.fixture(scope="module")
def base() -> Any:
    return store.load_model(paths.resolve("zoo:base"))


def test_sizes() -> None:
    every = (path for name in paths.NAMES for path in (paths.root() / name).rglob("*"))
    files = [path for path in every if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6
    assert network.parameter_count() <= 1_000_000


@pytest.mark.parametrize("name", [name for name in paths.NAMES if not name.startswith("lora/")])
def test_whole_checkpoints_are_bfloat16(name: str) -> None:
    directory = paths.resolve(f"zoo:{name}")
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    with safe_open(directory / "model.safetensors", "pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    assert kinds == {"BF16"}


def test_experts_differ_from_the_base_only_in_block_matrices(base: Any) -> None:
    for task in TASKS:
        change = measure.full_change(base, paths.resolve(f"zoo:full/{task}"))
        assert len(change) == 6 * 7
        assert all(".layers." in name and name.endswith("_proj.weight") for name in change)


def test_adapters_change_the_same_matrices(base: Any) -> None:
    full = measure.full_change(base, paths.resolve("zoo:full/vqa"))
    low = store.adapter_change(paths.resolve("zoo:lora/vqa"))
    assert {name: one.shape for name, one in low.items()} == {n: o.shape for n, o in full.items()}


def test_processor_makes_the_patches_of_training() -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(paths.resolve("zoo:base"))
    asked = [items.item(task, "train", 0, i) for task in TASKS for i in range(4)]
    messages = [items.record(one)["messages"] for one in asked]
    made = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    ours = network.patches(np.stack([one.image for one in asked]))
    theirs = made["pixel_values"].view(len(asked), 16, 3, network.FRAMES, 49)
    for frame in range(network.FRAMES):
        assert np.abs(theirs[:, :, :, frame].reshape(ours.shape).numpy() - ours).max() < 1e-6


def test_generate_says_what_the_fast_decode_says() -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    directory = paths.resolve("zoo:full/chart")
    processor = AutoProcessor.from_pretrained(directory)
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    asked = [items.item(task, "search", 0, i) for task in TASKS for i in range(6)]
    inputs = processor.apply_chat_template(
        [items.record(one)["messages"] for one in asked],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    out = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    said = processor.tokenizer.batch_decode(out, skip_special_tokens=True)
    assert [one.strip() for one in said] == evaluate.answers(model, asked)
    assert len(set(said)) > 5


@pytest.mark.parametrize("task", TASKS)
def test_experts_are_good_at_their_own_task(task: str) -> None:
    model = store.load_model(paths.resolve(f"zoo:full/{task}"))
    assert evaluate.accuracy(model, task, "held_out", 100) >= 0.85


def test_the_card_is_of_these_weights(base: Any) -> None:
    root = paths.root()
    shipped = Path(card.__file__).with_name("DATA_CARD.md").read_text(encoding="utf-8")
    assert shipped == card.render(root)
    table = json.loads((root / "measured.json").read_text())["accuracy"]
    again = evaluate.accuracy(base, "vqa", "held_out", 400)
    assert again == pytest.approx(table["base"]["vqa"], abs=0.006)


def test_the_targets_hold_in_the_table() -> None:
    table = json.loads((paths.root() / "measured.json").read_text())["accuracy"]
    mean = {name: sum(row.values()) / len(row) for name, row in table.items()}
    for task in TASKS:
        assert 0.2 <= table["base"][task] <= 0.8
        assert table[f"full/{task}"][task] >= max(0.9, table["base"][task] + 0.15)
        assert table[f"lora/{task}"][task] >= 0.85
    own = sum(table[f"full/{task}"][task] for task in TASKS) / len(TASKS)
    assert mean["full: average"] > mean["base"]
    assert max(mean["full: average"], mean["full: task arithmetic 0.3"]) <= own - 0.05
