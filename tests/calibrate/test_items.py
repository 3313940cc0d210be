"""Which items each source is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.calibrate.items import choose, items_sha256
from evomerge.errors import ConfigError, DataError
from evomerge.scoring.objectives import Objective, load_objective


def made(folder: Path, name: str, count: int, start: int = 0, **extra: object) -> Objective:
    lines = [{"prompt": f"{name} {i}", "answer": str(i)} for i in range(start, start + count)]
    file = folder / f"{name.replace('/', '-')}.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    data = {"search": str(file)}
    return load_objective({"name": name, "kind": "perplexity", "data": data, **extra}, folder)


@pytest.fixture
def objectives(tmp_path: Path) -> list[Objective]:
    return [made(tmp_path, "zoo/vqa", 10), made(tmp_path, "ocr", 4), made(tmp_path, "x/chart", 3)]


def asked(chosen: dict[str, tuple], source: str) -> list[str]:
    return [item.messages[0]["content"] for item in chosen[source]]


def test_the_objective_of_the_same_name(objectives: list[Objective]) -> None:
    chosen = choose(objectives, ["vqa", "ocr"], 64, {})
    assert asked(chosen, "vqa") == [f"zoo/vqa {i}" for i in range(10)]
    assert asked(chosen, "ocr") == [f"ocr {i}" for i in range(4)]


def test_evenly_spaced(objectives: list[Objective]) -> None:
    assert asked(choose(objectives, ["vqa"], 3, {}), "vqa") == [
        "zoo/vqa 0", "zoo/vqa 3", "zoo/vqa 6",
    ]  # fmt: skip


def test_without_a_match_and_for_the_base_all_in_equal_shares(objectives: list[Objective]) -> None:
    chosen = choose(objectives, ["vqa", "other"], 7, {})
    wanted = [
        "zoo/vqa 0", "ocr 0", "x/chart 0", "zoo/vqa 3", "ocr 2", "x/chart 1", "zoo/vqa 6",
    ]  # fmt: skip
    assert asked(chosen, "other") == asked(chosen, "base") == wanted


def test_what_a_small_objective_lacks_comes_from_the_others(objectives: list[Objective]) -> None:
    names = asked(choose(objectives, ["e"], 12, {}), "e")
    assert [sum(n.startswith(p) for n in names) for p in ("zoo", "ocr", "x")] == [5, 4, 3]
    assert len(asked(choose(objectives, ["e"], 99, {}), "e")) == 17


def test_named_objectives(objectives: list[Objective]) -> None:
    given = {"vqa": ["chart"], "base": ["ocr", "zoo/vqa"]}
    chosen = choose(objectives, ["vqa"], 4, given)
    assert asked(chosen, "vqa") == [f"x/chart {i}" for i in range(3)]
    assert asked(chosen, "base") == ["ocr 0", "zoo/vqa 0", "ocr 2", "zoo/vqa 5"]


def test_the_same_question_of_two_objectives_is_asked_once(tmp_path: Path) -> None:
    first = made(tmp_path, "a", 4)
    same = load_objective(
        {"name": "b", "kind": "length", "max_new_tokens": 2, "data": {"search": "a.jsonl"}},
        tmp_path,
    )
    chosen = choose([first, same], ["e"], 4, {})
    assert asked(chosen, "e") == [f"a {i}" for i in range(4)]


def test_the_hash_is_of_questions_answers_and_order(tmp_path: Path) -> None:
    items = made(tmp_path, "a", 3).items("search")
    same = made(tmp_path / ".", "a", 3).items("search")
    assert items_sha256(items) == items_sha256(same)
    hashes = {items_sha256(i) for i in (items, items[:2], items[::-1])}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("experts", "given", "message"),
    [
        (["vqa"], {"vqb": ["ocr"]}, "vqb.*no expert; did you mean 'vqa'"),
        (["vqa"], {"vqa": ["ocra"]}, "objective 'ocra'; did you mean 'ocr'"),
        (["base"], {}, "rename"),
    ],
)
def test_refusals(
    objectives: list[Objective], experts: list[str], given: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(objectives, experts, 4, given)


def test_no_items_at_all(tmp_path: Path) -> None:
    sparsity = load_objective({"name": "sparse", "kind": "sparsity"}, tmp_path)
    with pytest.raises(DataError, match="--items-for"):
        choose([sparsity], ["vqa"], 4, {})
