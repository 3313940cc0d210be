from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoints.catalog import catalog, fingerprint
from evomerge.checkpoints.digest import combine, tensor_digest
from evomerge.checkpoints.open import open_checkpoint
from evomerge.checkpoints.sources import open_sources
from evomerge.errors import CandidateError, CheckpointError
from evomerge.instantiate import Merge, model_digest, open_merge
from evomerge.recipe import Group, Recipe, Source
from tests.merging import full_expert, lora_delta, lora_expert, tensors_of, with_tensors
from tests.models import tiny_llama, tiny_qwen2_vl

LANGUAGE = "language/*/attention,mlp"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


Model = tuple[Path, Path, Path]  # base, full expert, LoRA expert
MODELS = {
    "llama-fp32": lambda path: tiny_llama(path),
    "llama-bf16-tied": lambda path: tiny_llama(path, dtype="bfloat16", tie=True),
    "llama-bf16": lambda path: tiny_llama(path, dtype="bfloat16"),
    "qwen2-vl-fp32": lambda path: tiny_qwen2_vl(path),
    "qwen2-vl-bf16": lambda path: tiny_qwen2_vl(path, dtype="bfloat16"),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp(request.param)
    base = MODELS[request.param](folder / "base")
    return base, full_expert(base, folder / "full", 1), lora_expert(base, folder / "lora", 2)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), dtype="bfloat16")


def recipe(
    base: Path,
    experts: dict[str, Path],
    method: str = "task_arithmetic",
    tensors: str = LANGUAGE,
    values: dict[str, Any] | None = None,
    **more: Any,
) -> Recipe:
    return Recipe(
        base=Source(path=str(base)),
        experts={name: Source(path=str(path)) for name, path in experts.items()},
        method=method,
        parameters=(Group.model_validate({"tensors": tensors, **(values or {})}),),
        **more,
    )


def everything(merge: Merge) -> dict[str, torch.Tensor]:
    return {name: merge.tensor(name) for name in merge.sources.base.tensors}


def digest(merge: Merge) -> str:
    """As it is taken while a candidate is scored: from what the merge makes and the catalogue."""
    made = {name: tensor_digest(tensor) for name, tensor in merge.tensors()}
    return model_digest(catalog(merge.sources.base).digests, made)


def whole_digest(merge: Merge) -> str:
    return combine({name: tensor_digest(t) for name, t in everything(merge).items()})


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return tensor_digest(one) == tensor_digest(other)


def test_selected_tensors_are_merged_and_all_others_keep_their_bits(model: Model) -> None:
    base, full, lora = model
    merge = open_merge(
        recipe(base, {"full": full, "lora": lora}, values={"weight": {"full": 0.5, "lora": 0.25}})
    )
    before, tuned = tensors_of(base), tensors_of(full)
    moved = {n for n in before if ".layers." in n and n.endswith("proj.weight")}
    moved = {n for n in moved if "visual" not in n}
    assert set(merge.moved) == moved
    assert len(moved) == 2 * 7
    for name, tensor in everything(merge).items():
        assert tensor.dtype == before[name].dtype
        if name not in moved:
            assert same_bits(tensor, before[name])
            continue
        start = before[name].double()
        expected = start + 0.5 * (tuned[name].double() - start) + 0.25 * lora_delta(lora, name)
        # float32 arithmetic, then one rounding to the output's dtype
        eps = torch.finfo(tensor.dtype).eps
        torch.testing.assert_close(tensor.double(), expected, rtol=eps, atol=2e-6)


def test_a_bf16_tensor_is_rounded_once(llama: Path, tmp_path: Path) -> None:
    """Half-way cases show a second rounding: the float32 sum is rounded, not its parts."""
    full = full_expert(llama, tmp_path / "full", 1)
    merge = open_merge(recipe(llama, {"a": full}, values={"weight": 1 / 3}))
    before, tuned = tensors_of(llama), tensors_of(full)
    for name, tensor in merge.tensors():
        start, end = before[name].float(), tuned[name].float()
        expected = start.numpy() + (end - start).numpy() * torch.tensor(1 / 3).numpy()
        assert same_bits(tensor, torch.from_numpy(expected).bfloat16())


def test_the_digest_is_that_of_the_whole_model(model: Model) -> None:
    base, full, lora = model
    for dtype in ("base", "float32", "bfloat16"):
        merge = open_merge(recipe(base, {"a": full, "b": lora}, method="ties", dtype=dtype))
        assert digest(merge) == whole_digest(merge)


def test_a_merge_that_moves_nothing_has_the_digest_of_the_base(model: Model) -> None:
    base, full, _ = model
    merge = open_merge(recipe(base, {"a": full}, values={"weight": 0.0}))
    assert digest(merge) == fingerprint(open_checkpoint(base))


@pytest.mark.parametrize(
    "method", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"]
)
def test_the_order_in_which_experts_are_listed_changes_no_bit(
    llama: Path, tmp_path: Path, method: str
) -> None:
    experts = {n: full_expert(llama, tmp_path / n, i) for i, n in enumerate("abcde")}
    weight = {n: 0.1 + 0.17 * i for i, n in enumerate("abcde")}
    digests = set()
    for order in ("abcde", "edcba", "cadbe"):
        listed = {n: experts[n] for n in order}
        merge = open_merge(
            recipe(llama, listed, method, values={"weight": {n: weight[n] for n in order}})
        )
        digests.add(digest(merge))
    assert len(digests) == 1


def test_the_order_of_two_models_has_a_meaning(llama: Path, tmp_path: Path) -> None:
    experts = {n: full_expert(llama, tmp_path / n, i) for i, n in enumerate("za")}
    merge = open_merge(recipe(llama, experts, "slerp", values={"t": 0.0}))
    for name, tensor in merge.tensors():
        assert same_bits(tensor, tensors_of(experts["z"])[name])


def test_a_whole_expert_is_itself(model: Model) -> None:
    """The reference point of an expert: linear over everything it changes."""
    base, full, _ = model
    merge = open_merge(recipe(base, {"a": full}, "linear", "*/*/*"))
    for name, tensor in everything(merge).items():
        assert same_bits(tensor, tensors_of(full)[name])


def test_a_tensor_that_no_expert_changes_stays_at_base(llama: Path, tmp_path: Path) -> None:
    full = full_expert(llama, tmp_path / "full", 1, r"layers\.1\.mlp")
    merge = open_merge(recipe(llama, {"a": full, "b": full}, values={"weight": 0.3}))
    assert set(merge.moved) == {n for n in tensors_of(llama) if ".1.mlp" in n}


def test_experts_that_the_recipe_leaves_out_move_nothing(llama: Path, tmp_path: Path) -> None:
    experts = {
        "a": full_expert(llama, tmp_path / "a", 1, r"layers\.0\.mlp"),
        "b": full_expert(llama, tmp_path / "b", 1, r"layers\.1\.mlp"),
    }
    sources = open_sources(str(llama), {n: str(p) for n, p in experts.items()})
    merge = Merge(recipe(llama, {"b": experts["b"]}), sources)
    assert list(merge.experts) == ["b"]
    assert set(merge.moved) == {n for n in tensors_of(llama) if ".1.mlp" in n}


# --- tied embeddings -----------------------------------------------------------------------------


@pytest.fixture
def stored_twice(tmp_path: Path) -> tuple[Path, Path]:
    """A tied model that stores its embedding a second time as the head, and an expert of it."""
    tied = tiny_llama(tmp_path / "tied", tie=True)
    tensors = tensors_of(tied)
    assert HEAD not in tensors
    base = with_tensors(tied, tmp_path / "base", {**tensors, HEAD: tensors[EMBEDDING].clone()})
    tuned = tensors_of(full_expert(tied, tmp_path / "tuned", 1, "embed_tokens|mlp"))
    expert = with_tensors(tied, tmp_path / "expert", {**tuned, HEAD: tuned[EMBEDDING].clone()})
    return base, expert


def test_a_tied_head_follows_the_embedding(stored_twice: tuple[Path, Path]) -> None:
    base, expert = stored_twice
    merge = open_merge(recipe(base, {"a": expert}, tensors="embeddings/*/*"))
    assert set(merge.moved) == {EMBEDDING, HEAD}
    assert same_bits(merge.tensor(HEAD), merge.tensor(EMBEDDING))
    assert not torch.equal(merge.tensor(HEAD), tensors_of(base)[HEAD])
    assert digest(merge) == whole_digest(merge)


def test_a_tied_head_is_not_moved_alone(stored_twice: tuple[Path, Path]) -> None:
    base, expert = stored_twice
    merge = open_merge(recipe(base, {"a": expert}, tensors="head/*/*"))
    assert same_bits(merge.tensor(HEAD), merge.tensor(EMBEDDING))
    assert same_bits(merge.tensor(HEAD), tensors_of(base)[EMBEDDING])


def test_an_untied_head_goes_its_own_way(llama: Path, tmp_path: Path) -> None:
    expert = full_expert(llama, tmp_path / "expert", 1, "embed_tokens|lm_head")
    merge = open_merge(recipe(llama, {"a": expert}, tensors="head/*/*"))
    assert set(merge.moved) == {HEAD}


# --- dtypes --------------------------------------------------------------------------------------


def test_a_cast_is_applied_to_every_tensor(model: Model) -> None:
    base, full, _ = model
    for dtype in ("float32", "bfloat16", "float16"):
        merge = open_merge(recipe(base, {"a": full}, values={"weight": 0.5}, dtype=dtype))
        wanted = getattr(torch, dtype)
        for name, tensor in everything(merge).items():
            assert tensor.dtype == merge.dtype(name) == wanted
            if name not in merge.moved:
                assert same_bits(tensor, tensors_of(base)[name].to(wanted))


def test_integers_keep_their_dtype(llama: Path, tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.position_ids": torch.arange(4)}
    base = with_tensors(llama, tmp_path / "base", {**tensors_of(llama), **extra})
    full = full_expert(llama, tmp_path / "full", 1)
    merge = open_merge(recipe(base, {"a": full}, tensors="*/*/*", dtype="float32"))
    for name, tensor in extra.items():
        assert name not in merge.moved
        assert same_bits(merge.tensor(name), tensor)


def test_a_result_that_is_not_finite(llama: Path, tmp_path: Path) -> None:
    full = full_expert(llama, tmp_path / "full", 1)
    merge = open_merge(recipe(llama, {"a": full}, values={"weight": 1e38, "scale": 1e3}))
    with pytest.raises(CandidateError, match=r"merged model\.layers\.0\..* is not finite"):
        list(merge.tensors())


def test_a_cast_that_overflows(llama: Path, tmp_path: Path) -> None:
    tensors = tensors_of(llama)
    tensors["model.norm.weight"][0] = 1e30
    base = with_tensors(llama, tmp_path / "base", tensors)
    full = full_expert(base, tmp_path / "full", 1)
    merge = open_merge(recipe(base, {"a": full}, dtype="float16"))
    with pytest.raises(CandidateError, match=r"model\.norm\.weight .*not finite"):
        everything(merge)


# --- content -------------------------------------------------------------------------------------


def test_sources_with_the_right_content(model: Model) -> None:
    base, full, lora = model
    sources = open_sources(str(base), {"full": str(full), "lora": str(lora)})
    checked = Recipe(
        base=Source(path=str(base), sha256=fingerprint(sources.base)),
        experts={
            name: Source(path=expert.reference, sha256=fingerprint(expert.weights))
            for name, expert in sources.experts.items()
        },
        method="linear",
        parameters=(Group(tensors=LANGUAGE),),
    )
    assert len({s.sha256 for s in (checked.base, *checked.experts.values())}) == 3
    open_merge(checked)


@pytest.mark.parametrize("which", ["base", "full", "lora"])
def test_sources_with_other_content(model: Model, which: str) -> None:
    base, full, lora = model
    paths = {"base": base, "full": full, "lora": lora}
    named = {
        name: Source(path=str(path), sha256="0" * 64 if name == which else None)
        for name, path in paths.items()
    }
    other = Recipe(base=named.pop("base"), experts=named, method="linear", parameters=())
    with pytest.raises(
        CheckpointError, match=rf"\({which}\) has content sha256 \w+, the recipe expects 0{{64}};"
    ):
        open_merge(other)
