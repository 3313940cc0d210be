"""Weights in the live model: mapped by name and value, in place, exactly."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.backends import mapping
from evomerge.backends.mapping import holds
from evomerge.errors import CandidateError, CheckpointError, ConfigError
from tests.backends.conftest import (
    image_requests,
    text_requests,
)
from tests.backends.running import fresh, opened, same


@pytest.mark.parametrize("model", ["llama", "qwen"])
def test_loading_in_place_equals_loading_from_disk(model, request):
    base, other = request.getfixturevalue(model), request.getfixturevalue(f"other_{model}")
    requests = text_requests() if model == "llama" else image_requests()
    backend = opened(base)
    before = backend.run(requests)
    backend.load(iter(load_file(other / "model.safetensors").items()))
    after = backend.run(requests)
    assert after == opened(other).run(requests)
    assert after != before
    live_state, disk_state = backend.live()[0].state_dict(), fresh(other).state_dict()
    assert live_state.keys() == disk_state.keys()
    assert all(torch.equal(live_state[name], disk_state[name]) for name in disk_state)
    backend.load({})
    assert backend.run(requests) == before


def test_what_is_not_named_returns_to_the_base(llama, other_llama):
    tensors = load_file(other_llama / "model.safetensors")
    first, second = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
    backend = opened(llama)
    backend.load({first: tensors[first]})
    backend.load({second: tensors[second]})
    base = load_file(llama / "model.safetensors")
    state = backend.live()[0].state_dict()
    assert torch.equal(state[second], tensors[second])
    assert torch.equal(state[first], base[first])


def test_a_load_that_breaks_off_is_undone_by_the_next(llama, other_llama):
    tensors = load_file(other_llama / "model.safetensors")

    def broken():
        yield from list(tensors.items())[:5]
        raise CandidateError("not finite")

    backend = opened(llama)
    with pytest.raises(CandidateError):
        backend.load(broken())
    backend.load({})
    assert backend.run(text_requests()) == opened(llama).run(text_requests())


def renamed(source, target, rename, **drop_or_add):
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    named = {rename(n): t.clone() for n, t in tensors.items() if rename(n) is not None}
    save_file({**named, **drop_or_add}, target / "model.safetensors", {"format": "pt"})
    return target


def test_other_spellings_of_names_on_disk(qwen, tmp_path):
    """Today's names in memory, and the published ones, which differ, are both names on disk."""

    def today(name):
        if name.startswith("visual."):
            return "model." + name
        return name.replace("model.", "model.language_model.", 1)

    requests = image_requests()
    path = renamed(qwen, tmp_path / "m", today)
    assert set(load_file(path / "model.safetensors")) & set(fresh(qwen).state_dict())
    assert not set(load_file(path / "model.safetensors")) & set(
        load_file(qwen / "model.safetensors")
    )
    backend = opened(path)
    assert backend.run(requests) == opened(qwen).run(requests)
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    backend.load({name: torch.zeros(64, 32)})
    assert backend.run(requests) != opened(qwen).run(requests)


def test_a_wrong_mapping_is_found(llama, monkeypatch):
    honest = mapping.live_names

    def swapped(model, names):
        found, fused = honest(model, names)
        one, two = (f"model.layers.{i}.input_layernorm.weight" for i in (0, 1))
        return {**found, one: found[two], two: found[one]}, fused

    monkeypatch.setattr(mapping, "live_names", swapped)
    with pytest.raises(CheckpointError, match="not what the loaded model holds"):
        opened(llama)


@pytest.mark.filterwarnings("ignore")
def test_an_incomplete_checkpoint_is_refused(llama, tmp_path):
    path = renamed(llama, tmp_path / "m", lambda n: None if "up_proj" in n else n)
    with pytest.raises(
        CheckpointError, match=r"up_proj\.weight' of LlamaForCausalLM is in no file"
    ):
        opened(path)


def test_a_mixture_of_experts(tmp_path):
    """transformers stacks the experts' tensors into one; on disk each has its own."""
    from tests.models import tiny_mixtral

    base, other = tiny_mixtral(tmp_path / "a"), tiny_mixtral(tmp_path / "b", seed=1)
    backend = opened(base)
    weights = load_file(other / "model.safetensors")
    assert sum("experts" in name for name in weights) == 2 * 3 * 3
    backend.load(weights)
    live_state, disk_state = backend.live()[0].state_dict(), fresh(other).state_dict()
    assert all(torch.equal(live_state[name], disk_state[name]) for name in disk_state)
    one = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    backend.load({one: weights[one]})
    assert backend.run(text_requests()) != opened(base).run(text_requests())
    with pytest.raises(ConfigError, match="has shape"):
        backend.load({one: weights[one].T})


@pytest.mark.filterwarnings("ignore")
def test_a_mixture_that_lacks_an_expert_is_refused(tmp_path):
    from tests.models import tiny_mixtral

    path = renamed(
        tiny_mixtral(tmp_path / "a"), tmp_path / "m", lambda n: None if "experts.2.w1" in n else n
    )
    with pytest.raises(CheckpointError, match=r"only part of|cannot load it"):
        opened(path)


def test_a_llava(tmp_path):
    """Another family: CLIP tower, projector, Llama; other names on disk than in memory."""
    from tests.models import tiny_llava

    base, other = tiny_llava(tmp_path / "a"), tiny_llava(tmp_path / "b", seed=1)
    backend = opened(base, batch=4)
    requests = image_requests()
    same(backend.run(requests), [backend.run([r])[0] for r in requests])
    backend.load(load_file(other / "model.safetensors"))
    same(backend.run(requests), opened(other).run(requests))


def test_a_tensor_that_the_model_has_not_can_only_stay_at_base(llama, tmp_path):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    backend = opened(renamed(llama, tmp_path / "m", lambda n: n, **extra))
    with pytest.raises(ConfigError, match="no part of the running model"):
        backend.load(extra)


def test_tied_weights(tmp_path):
    from tests.models import tiny_llama

    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    path = tiny_llama(tmp_path / "tied", tie=True)
    stored = load_file(path / "model.safetensors")
    assert head not in stored
    backend = opened(path)
    moved = torch.randn(stored[embedding].shape)
    backend.load({embedding: moved})
    assert torch.equal(backend.live()[0].lm_head.weight, moved)

    both = opened(renamed(path, tmp_path / "both", lambda n: n, **{head: stored[embedding]}))
    both.load({embedding: moved, head: moved})
    assert torch.equal(both.live()[0].lm_head.weight, moved)
    both.load({})
    assert torch.equal(both.live()[0].lm_head.weight, stored[embedding])
    with pytest.raises(ConfigError, match="tied in the model but only the first was given"):
        both.load({embedding: moved})
    with pytest.raises(ConfigError, match="given different values"):
        both.load({embedding: moved, head: moved + 1})


def test_wrong_weights_are_refused(llama):
    backend = opened(llama)
    with pytest.raises(ConfigError, match="'none' is no part"):
        backend.load({"none": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"has shape \(3,\), expected \(32,\)"):
        backend.load({"model.norm.weight": torch.zeros(3)})
    with pytest.raises(ConfigError, match="is float64, but the model computes in float32"):
        backend.load({"model.norm.weight": torch.zeros(32, dtype=torch.float64)})


def test_a_dtype_that_rounds_the_base_is_refused(llama):
    with pytest.raises(ConfigError, match="is float32, which compute dtype bfloat16 rounds"):
        opened(llama, dtype="bfloat16")


def test_a_bfloat16_checkpoint_runs_in_float32(tmp_path):
    from tests.models import tiny_llama

    path = tiny_llama(tmp_path / "half", dtype="bfloat16")
    requests = text_requests()
    wide = opened(path)
    assert wide.live()[0].dtype == torch.float32
    wide.load({"model.norm.weight": torch.ones(32, dtype=torch.bfloat16)})
    narrow = opened(path, dtype="bfloat16")
    assert narrow.live()[0].dtype == torch.bfloat16
    assert len(narrow.run(requests)) == len(requests)


@pytest.mark.parametrize("compute", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_holds_is_exactly_what_survives_a_cast(compute, stored):
    finfo = torch.finfo(stored)
    extremes = torch.tensor([1 + finfo.eps, finfo.max, finfo.tiny], dtype=torch.float64)
    survives = torch.equal(extremes.to(stored).to(compute).to(stored), extremes.to(stored))
    assert holds(compute, stored) == survives
