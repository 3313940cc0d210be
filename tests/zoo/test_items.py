"""The generator of the zoo's items: pure, the same in every process, its splits disjoint."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evomerge.zoo import items, plan, words
from evomerge.zoo.paths import TASKS

ROOT = Path(__file__).parents[2] / "objectives" / "zoo"

pytest.importorskip("sklearn", reason="the OCR items are drawn from scikit-learn's digits")


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_picture(task: str) -> None:
    sizes = {"train": 600, **items.SIZES}
    held = {
        split: {items.fingerprint(items.scene(task, split, 0, i).image) for i in range(count)}
        for split, count in sizes.items()
    }
    assert all(len(held[split]) > 0.9 * count for split, count in sizes.items())
    assert not held["train"] & held["search"]
    assert not held["train"] & held["held_out"]
    assert not held["search"] & held["held_out"]


def test_every_picture_is_at_home_in_its_split() -> None:
    for split in items.SPLITS:
        for index in range(40):
            assert items.home(items.scene("vqa", split, 3, index).image) == split


def test_handwriting_of_the_splits_is_disjoint() -> None:
    from evomerge.zoo import draw

    places = {
        split: set(np.concatenate(draw.handwritten(split)[1]).tolist()) for split in items.SPLITS
    }
    assert sum(map(len, places.values())) == 1797 == len(set().union(*places.values()))


def test_an_item_is_the_same_in_another_process() -> None:
    code = (
        "from evomerge.zoo import items;"
        "print(*(items.fingerprint(items.item(t, 'train', 5, 17).image) for t in items.TASKS))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert there == [items.fingerprint(items.item(t, "train", 5, 17).image) for t in TASKS]


@pytest.mark.parametrize("task", TASKS)
def test_words_are_known_and_answers_short(task: str) -> None:
    for index in range(200):
        scene = items.scene(task, "train", 1, index)
        assert tuple(form for form, _, _ in scene.questions) == plan.FORMS[task]
        for _, question, answer in scene.questions:
            assert words.encode(f"{question} {answer}".split())
            assert 1 <= len(answer.split()) <= 2
        assert words.encode(scene.description.split())


def test_answers_follow_from_the_description() -> None:
    for index in range(200):
        scene = items.scene("chart", "train", 2, index)
        said = scene.description.split()
        bars = dict(zip(said[::2], map(int, said[1::2]), strict=True))
        answers = {form: answer for form, _, answer in scene.questions}
        assert answers["highest"] == max(bars, key=bars.__getitem__)
        assert answers["lowest-value"] == str(min(bars.values()))


@pytest.mark.parametrize("split", items.SIZES)
@pytest.mark.parametrize("task", TASKS)
def test_files_are_what_the_generator_makes(task: str, split: str) -> None:
    lines = (ROOT / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == items.SIZES[split]
    from PIL import Image

    for index, line in enumerate(lines):
        made, stored = items.item(task, split, 0, index), json.loads(line)
        picture, text = stored["messages"][0]["content"]
        pixels = Image.open(io.BytesIO(base64.b64decode(picture["image"].partition(",")[2])))
        assert (stored["id"], text["text"], stored["answer"]) == (
            made.id,
            made.question,
            made.answer,
        )
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == items.fingerprint(made.image)
