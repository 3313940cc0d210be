"""The text zoo: items, shipped checkpoints, and what the data card says of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.backends.texts import Texts
from evomerge.config import load_experiment
from evomerge.content import find
from evomerge.scoring.requests import LogLikelihood
from evomerge.zoo import build, card, measure, paths, store, train
from evomerge.zoo.paths import TEXT_NAMES, TEXT_TASKS
from evomerge.zoo.text import items, model, plan

OBJECTIVES = Path(__file__).parents[2] / "objectives" / "zoo-text"


def _measured() -> Any:
    return json.loads((paths.root() / "text" / "measured.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def base() -> Any:
    return store.load_model(paths.resolve("zoo:text/base"))


def _right(task: str, said: list[str], form: str) -> str:
    """The answer, worked out in another way than the generator does."""
    if task == "reverse":
        return " ".join(reversed(said))
    if task == "sort":
        return " ".join(letter for letter in items.LETTERS for _ in range(said.count(letter)))
    if task == "shift":
        turned = items.LETTERS[int(form) :] + items.LETTERS[: int(form)]
        return " ".join(said[1:]).translate(str.maketrans(items.LETTERS, turned))
    if task == "add":
        first, second = "".join(said).split("+")
        return " ".join(str(int(first) + int(second)))
    return " ".join(x for place, x in enumerate(said) if x not in said[:place])


@pytest.mark.parametrize("split", items.SIZES)
@pytest.mark.parametrize("task", TEXT_TASKS)
def test_answers_are_right_and_short(task: str, split: str) -> None:
    asked = items.questions(task, split, items.SIZES[split])
    for one in asked:
        name, *said = one.question.split()
        assert name == task
        assert one.answer == _right(task, said, one.form)
        tokens, start = model.sequence(one.question, one.answer)
        assert len(tokens) <= 24
        assert len(tokens) - start <= model.LONGEST
    assert Counter(one.form for one in asked) == dict.fromkeys(
        items.FORMS[task], items.SIZES[split] // 4
    )


def test_forms_of_addition_say_which_digits_carry() -> None:
    for one in items.questions("add", "train", 100):
        first, second = (text.replace(" ", "") for text in one.question[4:].split("+"))
        ones, tens = int(first[1]) + int(second[1]) > 9, int(first) + int(second) > 99
        said = {(0, 0): "none", (1, 0): "ones", (0, 1): "tens", (1, 1): "both"}
        assert one.form == said[int(ones), int(tens)]


@pytest.mark.parametrize("task", TEXT_TASKS)
def test_splits_share_no_question_and_have_each_once(task: str) -> None:
    sizes = {"train": 600, **items.SIZES}
    held = {
        split: {one.question for one in items.questions(task, split, count)}
        for split, count in sizes.items()
    }
    assert {split: len(asked) for split, asked in held.items()} == sizes
    assert not held["train"] & held["search"]
    assert not held["train"] & held["held_out"]
    assert not held["search"] & held["held_out"]
    assert all(items.home(asked) == split for split, some in held.items() for asked in some)


def test_items_are_the_same_in_another_process() -> None:
    code = (
        "from evomerge.zoo.text import items;"
        "[print(items.questions(t, 'train', 9)[8].question) for t in items.TEXT_TASKS]"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert there == [items.questions(task, "train", 9)[8].question for task in TEXT_TASKS]


def test_files_are_what_the_generator_makes(tmp_path: Path) -> None:
    build.write_text_items(tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    assert len(made) == 2 * len(TEXT_TASKS)
    assert made == {name: (OBJECTIVES / name).read_bytes() for name in made}


@pytest.mark.parametrize("name", TEXT_NAMES)
def test_checkpoints_are_bfloat16_and_have_the_recorded_hash(name: str) -> None:
    path = paths.resolve(f"zoo:{name}") / "model.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == _measured()["sha256"][name]
    with safe_open(path, "pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    assert kinds == {"BF16"}


def test_sizes() -> None:
    files = [path for path in (paths.root() / "text").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6e6
    assert model.parameter_count() <= 400_000


def test_experts_differ_from_the_base_only_in_block_matrices(base: Any) -> None:
    for task in TEXT_TASKS:
        change = measure.full_change(base, paths.resolve(f"zoo:text/{task}"))
        assert len(change) == 4 * 7
        assert all(".layers." in name and name.endswith("_proj.weight") for name in change)


@pytest.mark.parametrize("task", TEXT_TASKS)
def test_the_template_and_tokenizer_give_the_tokens_of_training(task: str) -> None:
    directory = paths.resolve("zoo:text/base")
    texts = Texts(directory, model.config())
    for one in items.questions(task, "search", 20):
        messages = items.record(one)["messages"]
        tokens, start = model.sequence(one.question, one.answer)
        assert texts.ids(messages) == tokens[:start]
        answer = LogLikelihood(messages, one.answer)
        assert texts.continuation(answer) == tokens[start:-1]  # the end is not part of the text
        messages.append({"role": "assistant", "content": one.answer})
        whole = texts.tokenizer.apply_chat_template(messages)["input_ids"]
        assert whole == tokens


def test_generate_says_what_the_batched_decode_says() -> None:
    directory = paths.resolve("zoo:text/reverse")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    live = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    asked = [one for task in TEXT_TASKS for one in items.questions(task, "search", 8)]
    inputs = tokenizer.apply_chat_template(
        [items.record(one)["messages"] for one in asked],
        add_generation_prompt=True,
        return_tensors="pt",
        padding=True,
        return_dict=True,
    )
    out = live.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    said = tokenizer.batch_decode(out, skip_special_tokens=True)
    assert said == model.answers(live, asked)
    assert len(set(said)) > 20


def test_the_card_is_of_these_weights(base: Any) -> None:
    root = paths.root()
    shipped = Path(model.__file__).with_name("DATA_CARD.md").read_text(encoding="utf-8")
    assert shipped == card.render_text(root)
    table = _measured()["accuracy"]
    for task in ("sort", "add"):
        again = model.accuracy(base, task, "held_out", 400)
        assert again == pytest.approx(table["text/base"][task], abs=0.006)


def test_the_targets_hold_in_the_table() -> None:
    table = _measured()["accuracy"]
    mean = {name: sum(row.values()) / len(row) for name, row in table.items()}
    for task in TEXT_TASKS:
        assert 0.2 <= table["text/base"][task] <= 0.8
        assert table[f"text/{task}"][task] >= table["text/base"][task] + 0.2
        others = [of for of in TEXT_TASKS if of != task]
        assert all(table[f"text/{task}"][of] >= 0.4 * table["text/base"][of] for of in others)
    own = sum(table[f"text/{task}"][task] for task in TEXT_TASKS) / len(TEXT_TASKS)
    assert mean["average"] > mean["text/base"] + 0.02
    assert max(mean["average"], mean["task arithmetic 0.3"]) <= own - 0.1


@pytest.mark.parametrize("task", TEXT_TASKS)
def test_experts_are_good_at_their_own_task(task: str) -> None:
    expert = store.load_model(paths.resolve(f"zoo:text/{task}"))
    measured = _measured()["accuracy"][f"text/{task}"][task]
    assert model.accuracy(expert, task, "held_out", 400) == pytest.approx(measured, abs=0.006)


def test_a_build_makes_every_checkpoint_and_the_card_and_again_the_same(tmp_path: Path) -> None:
    tiny = build.Sizes(text=0.01, items=4)
    hashes = []
    for name in ("one", "two"):
        build.build(tmp_path / name, sizes=tiny, workers=1, part="text")
        made = json.loads((tmp_path / name / "text" / "measured.json").read_text())
        hashes.append(made["sha256"])
        assert "| text/add |" in (tmp_path / name / "text" / "DATA_CARD.md").read_text("utf-8")
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0].values())) == len(TEXT_NAMES)
    assert not (tmp_path / "one" / "base").exists()


def test_a_loss_falls_in_training() -> None:
    live = model.new_model(0)
    losses: list[float] = []
    train.run(
        live,
        plan.course("base", 0, 0.05),
        lambda _, mean: bool(losses.append(mean)),
        loss_of=model.loss,
    )
    assert losses[-1] < losses[0] - 0.1


def test_the_experiment_uses_every_expert() -> None:
    experiment = load_experiment(find("experiments", "quickstart-text"))
    assert sorted(experiment.experts) == sorted(TEXT_TASKS)
