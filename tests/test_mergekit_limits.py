"""What of a mergekit configuration is refused, left out, or only noted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoints.layout import Place
from evomerge.errors import ConfigError
from evomerge.instantiate import open_merge
from evomerge.mergekit.cells import selectors
from evomerge.recipe import Selector, Source
from tests.mergekit import BLOCKS, SLERP, Q, checkpoint, models, read, values, workspace


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workspace(tmp_path_factory.mktemp("mergekit"))


# filters that a recipe cannot follow


def test_a_filter_within_a_kind_of_module_is_refused(folder: Path) -> None:
    setting = [{"filter": "q_proj", "value": 1}, {"value": 0.5}]
    with pytest.raises(ConfigError, match=r"'q_proj' of 't' in parameters .*self_attn, mlp"):
        read(
            folder,
            models=[{"model": "a"}],
            merge_method="slerp",
            base_model="base",
            parameters={"t": setting},
        )


def test_a_filter_of_one_norm_is_refused(folder: Path) -> None:
    setting = [{"filter": "input_layernorm", "value": 1}, {"value": 0.5}]
    with pytest.raises(ConfigError, match="input_layernorm"):
        read(
            folder,
            models=[{"model": "a"}],
            merge_method="slerp",
            base_model="base",
            parameters={"t": setting},
        )


def test_norms_within_attention_follow_the_other_norms(tmp_path: Path) -> None:
    inside = tuple(f"model.layers.{b}.self_attn.q_norm.weight" for b in range(BLOCKS))
    for seed, name in enumerate(("base", "a")):
        checkpoint(tmp_path / name, seed, inside)
    recipe, notes = read(
        tmp_path,
        models=[{"model": "a"}],
        merge_method="slerp",
        base_model="base",
        parameters={"t": SLERP},
    )
    assert values(tmp_path, recipe, inside[4], "t") == 0.5
    assert values(tmp_path, recipe, Q.format(4), "t") == 1
    assert [n for n in notes if "q_norm" in n and "takes that of" in n and "4 such" in n]


# models


def test_adapters_lie_on_the_base(folder: Path) -> None:
    recipe, _ = read(
        folder,
        models=[{"model": "base+lora", "parameters": {"weight": 0.5}}, *models(0.2)],
        merge_method="task_arithmetic",
        base_model="base",
    )
    assert recipe.experts["lora"] == Source(path=str(folder / "lora"))
    assert open_merge(recipe).sources.experts["lora"].kind == "lora"
    with pytest.raises(ConfigError, match=r"lies on a, which is not the base base"):
        read(
            folder,
            models=[{"model": "a+lora", "parameters": {"weight": 0.5}}],
            merge_method="task_arithmetic",
            base_model="base",
        )


def test_without_a_base_model_it_is_what_an_adapter_lies_on(folder: Path) -> None:
    given = [*models(1.0), {"model": "base+lora", "parameters": {"weight": 1.0}}]
    recipe, _ = read(folder, models=given, merge_method="linear")
    assert recipe.base.path == str(folder / "base")
    assert list(recipe.experts) == ["a", "lora"]


def test_names_of_experts_are_distinct(folder: Path) -> None:
    given = [
        {"model": f"{owner}/base", "parameters": {"weight": 1.0}}
        for owner in ("one", "two", "two/x")
    ]
    recipe, _ = read(folder, models=given, merge_method="linear")
    assert list(recipe.experts) == ["base", "base-2", "base-3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "tiess"}, "did you mean 'ties'"),
        ({"base_model": None}, "needs a base_model"),
        ({"base_model": "base+lora"}, "base_model has a LoRA"),
        ({"models": None}, "either models or slices"),
        ({"models": []}, "no model"),
        ({"models": None, "slices": []}, "no model"),
        ({"models": [{"model": "a", "parameters": {"weight": "x"}}]}, "expected a number, a list"),
        ({"models": [{"model": "a", "parameters": {"weight": [{}]}}]}, "expected a number, a list"),
        ({"models": [{"model": "base"}]}, "found 0"),
        ({"modules": {"text_decoder": {}}}, "modules cannot be expressed"),
        ({"models": [{"model": "a@main", "parameters": {"weight": 1}}]}, "revision"),
        ({"models": models(1.0) * 2}, "listed twice"),
        ({"dtype": "int8"}, "expected one of float32"),
        ({"parameters": {"weight": []}}, ""),
        ({"tokenizer": {"source": "base", "pad_to_multiple_of": 64}}, "vocabulary"),
    ],
)
def test_what_cannot_be_read(folder: Path, change: dict[str, Any], message: str) -> None:
    config = {"merge_method": "ties", "base_model": "base", "models": models(1.0, 1.0), **change}
    if message == "":
        config["models"] = [{"model": "a"}]
        message = "no value of 'weight'"
    with pytest.raises(ConfigError, match=message) as raised:
        read(folder, **config)
    assert "config.yml" in str(raised.value)


def test_what_is_left_out_is_said(folder: Path) -> None:
    _, notes = read(
        folder,
        models=models(1.0),
        merge_method="task_arithmetic",
        base_model="base",
        parameters={"densty": 0.4, "int8_mask": True},
        chat_template="auto",
        name="my-merge",
        dtype="float32",
    )
    assert [n.split(" ")[1] for n in notes] == ["'densty'", "is", "key"]


# vocabularies


def tokenizer(model: Path, *words: str) -> None:
    data = {"model": {"vocab": {w: i for i, w in enumerate(words)}}, "added_tokens": []}
    (model / "tokenizer.json").write_text(json.dumps(data))


def test_the_vocabulary_must_be_the_bases(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        tokenizer(checkpoint(tmp_path / name, seed), "x", "y")
    config: dict[str, Any] = {
        "merge_method": "ties",
        "base_model": "base",
        "models": models(1.0, 1.0),
        "dtype": "float32",
    }
    for source in ("base", "union", "a"):
        assert read(tmp_path, **config, tokenizer_source=source)[1] == []
        assert read(tmp_path, **config, tokenizer={"source": source})[1] == []
    tokenizer(tmp_path / "b", "x", "z")
    assert read(tmp_path, **config, tokenizer_source="a")[1] == []
    for source in ("union", "b"):
        with pytest.raises(ConfigError, match="differs from that of the base"):
            read(tmp_path, **config, tokenizer_source=source)
    (tmp_path / "b" / "tokenizer.json").unlink()
    assert "cannot be told" in read(tmp_path, **config, tokenizer_source="b")[1][0]


# selectors


@pytest.mark.parametrize("seed", range(20))
def test_selectors_hold_exactly_the_wanted_cells(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    every = [
        Place(tower, block, module)
        for tower, count in (("language", 6), ("vision", 3))
        for block in range(count)
        for module in ("attention", "mlp", "norm")
    ]
    every += [Place("language", None, "norm"), Place("head", None, "head")]
    shape = torch.rand(len(every), generator=generator)
    wanted = {p for p, u in zip(every, shape, strict=True) if u < 0.15 * (1 + seed % 6)}
    if seed % 3 == 0:
        wanted = {p for p in every if p.module == "mlp" or p.block in (0, 1, 4)}
    parsed = [Selector.parse(text) for text in selectors(wanted, every)]
    held = [p for p in every for selector in parsed if selector.matches(p)]
    assert len(held) == len(set(held))
    assert set(held) == wanted


def test_selectors_are_short() -> None:
    every = {Place("language", b, m) for b in range(4) for m in ("attention", "mlp")}
    every.add(Place("head", None, "head"))
    assert selectors(every, every) == ["*/*/*"]
    attention = [p for p in every if p.module == "attention"]
    assert selectors(attention, every) == ["language/*/attention"]
    low = [p for p in every if p.block in (0, 1, 3)]
    assert selectors(low, every) == ["language/0-1,3/attention,mlp"]
