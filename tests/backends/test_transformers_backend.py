from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.backends import mapping
from evomerge.backends.mapping import holds
from evomerge.backends.prompts import load_processor
from evomerge.backends.transformers import TransformersBackend
from evomerge.errors import CandidateError, CheckpointError, ConfigError, DataError
from evomerge.scoring.data import image_bytes
from evomerge.scoring.requests import Generate, Generated, Likelihood, LogLikelihood
from tests.backends.conftest import (
    image_messages,
    image_requests,
    picture,
    text_messages,
    text_requests,
)


def opened(path, **options):
    backend = TransformersBackend(path, device="cpu", **options)
    backend.open()
    return backend


def fresh(path):
    """The model as any user of the checkpoint would load it."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    vision = "vision_config" in json.loads((path / "config.json").read_text())
    loader = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    return loader.from_pretrained(path, dtype=torch.float32).eval()


def inputs_of(path, model, messages):
    """Inputs of one conversation by transformers' own processor, without padding."""
    import io

    from PIL import Image

    processor = load_processor(path, model.config)
    shaped, images = [], []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            found = [p["image"] for p in content if p["type"] == "image"]
            images += [Image.open(io.BytesIO(image_bytes(i))) for i in found]
            content = [{"type": "image"} if p["type"] == "image" else p for p in content]
        shaped.append({"role": message["role"], "content": content})
    template = processor if getattr(processor, "chat_template", None) else processor.tokenizer
    text = template.apply_chat_template(shaped, tokenize=False, add_generation_prompt=True)
    pictures = {"images": images} if images else {}
    return processor(text=[text], add_special_tokens=False, return_tensors="pt", **pictures)


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, Likelihood):
            assert a.tokens == b.tokens
            assert a.logprob == pytest.approx(b.logprob, abs=1e-3)
        else:
            assert a == b


CASES = [("llama", text_requests), ("qwen", image_requests), ("qwen", text_requests)]


@pytest.mark.parametrize(("model", "make"), CASES)
def test_batched_equals_one_by_one(model, make, request):
    backend = opened(request.getfixturevalue(model), batch=5)
    requests = make()
    batched = backend.run(requests)
    same(batched, [backend.run([r])[0] for r in requests])
    assert len({r.text for r in batched if isinstance(r, Generated)}) > 3


@pytest.mark.parametrize(("model", "make"), CASES)
def test_generation_equals_generate_of_transformers(model, make, request):
    path = request.getfixturevalue(model)
    requests = [r for r in make() if isinstance(r, Generate)]
    responses = opened(path).run(requests)
    reference = fresh(path)
    tokenizer = load_processor(path, reference.config)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    for asked, response in zip(requests, responses, strict=True):
        inputs = inputs_of(path, reference, asked.messages)
        if model == "llama":
            inputs = {k: inputs[k] for k in ("input_ids", "attention_mask")}
        tokens = reference.generate(**inputs, max_new_tokens=asked.max_new_tokens, do_sample=False)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        assert response == Generated(tokenizer.decode(new, skip_special_tokens=True), len(new))


@pytest.mark.parametrize(("model", "make"), CASES)
def test_likelihood_by_hand(model, make, request):
    path = request.getfixturevalue(model)
    requests = [r for r in make() if isinstance(r, LogLikelihood)]
    responses = opened(path).run(requests)
    reference = fresh(path)
    for asked, response in zip(requests, responses, strict=True):
        inputs = dict(inputs_of(path, reference, asked.messages))
        tokenizer = load_processor(path, reference.config)
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        new = tokenizer(asked.continuation, add_special_tokens=False, return_tensors="pt")
        new, start = new["input_ids"], inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], new], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            types = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(new)], dim=1)
        if model == "llama":
            inputs = {k: inputs[k] for k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            logits = reference(**inputs).logits[0].double()
        total = sum(
            float(logits[start + i - 1, token] - logits[start + i - 1].logsumexp(-1))
            for i, token in enumerate(new[0].tolist())
        )
        assert response.tokens == new.shape[1]
        assert response.logprob == pytest.approx(total, abs=1e-3)


def test_order_and_history_do_not_matter(qwen):
    backend = opened(qwen, batch=4)
    requests = [*image_requests(), *text_requests()]
    first = backend.run(requests)
    assert backend.run(requests[::-1]) == first[::-1]
    assert backend.run(requests) == first
    assert backend.run([]) == []


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
    live_state, disk_state = backend._get()[0].state_dict(), fresh(other).state_dict()
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
    state = backend._get()[0].state_dict()
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
    live_state, disk_state = backend._get()[0].state_dict(), fresh(other).state_dict()
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
    assert torch.equal(backend._get()[0].lm_head.weight, moved)

    both = opened(renamed(path, tmp_path / "both", lambda n: n, **{head: stored[embedding]}))
    both.load({embedding: moved, head: moved})
    assert torch.equal(both._get()[0].lm_head.weight, moved)
    both.load({})
    assert torch.equal(both._get()[0].lm_head.weight, stored[embedding])
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
    assert wide._get()[0].dtype == torch.float32
    wide.load({"model.norm.weight": torch.ones(32, dtype=torch.bfloat16)})
    narrow = opened(path, dtype="bfloat16")
    assert narrow._get()[0].dtype == torch.bfloat16
    assert len(narrow.run(requests)) == len(requests)


@pytest.mark.parametrize("compute", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_holds_is_exactly_what_survives_a_cast(compute, stored):
    finfo = torch.finfo(stored)
    extremes = torch.tensor([1 + finfo.eps, finfo.max, finfo.tiny], dtype=torch.float64)
    survives = torch.equal(extremes.to(stored).to(compute).to(stored), extremes.to(stored))
    assert holds(compute, stored) == survives


def test_a_broken_candidate_fails_alone(llama):
    backend = opened(llama)
    before = backend.run(text_requests())
    backend.load({"model.norm.weight": torch.full((32,), float("nan"))})
    with pytest.raises(CandidateError, match="not finite"):
        backend.run([Generate(text_messages("a"), 2)])
    with pytest.raises(CandidateError, match="not finite"):
        backend.run([LogLikelihood(text_messages("a"), "b")])
    backend.load({})
    assert backend.run(text_requests()) == before


def test_an_end_token_ends_an_answer(llama, tmp_path):
    asked = [Generate(text_messages(f"the {i}"), 6) for i in range(5)]
    reference = fresh(llama)
    inputs = inputs_of(llama, reference, asked[2].messages)
    start = inputs["input_ids"].shape[1]
    tokens = reference.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=6,
        do_sample=False,
    )[0, start:].tolist()
    path = tmp_path / "m"
    shutil.copytree(llama, path)
    settings = json.loads((path / "generation_config.json").read_text())
    settings["eos_token_id"] = [tokens[2], settings["eos_token_id"]]
    (path / "generation_config.json").write_text(json.dumps(settings))
    responses = opened(path).run(asked)
    assert [r.tokens for r in opened(llama).run(asked)] == [6] * 5
    assert responses[2].tokens == tokens.index(tokens[2]) + 1 < 6
    same(responses, [opened(path).run([r])[0] for r in asked])


def test_images_need_a_model_that_sees(llama, qwen):
    with pytest.raises(DataError, match="reads text only"):
        opened(llama).run([Generate(image_messages(0, "what"), 1)])
    damaged = "data:image/png;base64," + picture(0).partition(",")[2][:40]
    content = ({"type": "image", "image": damaged},)
    with pytest.raises(DataError, match="cannot be decoded"):
        opened(qwen).run([Generate(({"role": "user", "content": content},), 1)])


def test_the_image_is_seen(qwen):
    asked = [LogLikelihood(image_messages(seed, "what"), "the") for seed in (0, 1)]
    first, second = opened(qwen).run(asked)
    assert abs(first.logprob - second.logprob) > 1e-3


def test_without_a_chat_template_text_is_continued(llama, tmp_path):
    path = tmp_path / "m"
    shutil.copytree(llama, path)
    (path / "chat_template.jinja").unlink()
    backend = opened(path)
    prompter = backend._get()[2]
    ids = prompter.prompt(Generate(text_messages("the cat"), 1)).ids.tolist()
    assert ids == prompter.tokenizer("the cat")["input_ids"]
    # "t" + "he" would be one token together; after the prompt's "t" only "he" can be generated
    split = prompter.continuation(LogLikelihood(text_messages("t"), "he"))
    assert split.tolist() == prompter.tokenizer("he")["input_ids"]
    with pytest.raises(DataError, match="has no tokens"):
        prompter.continuation(LogLikelihood(text_messages("t"), ""))


def test_a_directory_without_a_tokeniser_is_refused(llama, tmp_path):
    path = tmp_path / "m"
    path.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(llama / name, path / name)
    with pytest.raises(CheckpointError, match="tokeniser or image processor cannot be loaded"):
        opened(path)


def test_devices(llama):
    with pytest.raises(ConfigError, match="none of cpu, cuda"):
        TransformersBackend(llama, device="gpu").open()
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device here"):
            TransformersBackend(llama, device="cuda").open()


def test_use_before_open_and_after_close(llama):
    backend = TransformersBackend(llama)
    with pytest.raises(RuntimeError, match="not open"):
        backend.run([])
    backend.open()
    backend.close()
    backend.close()
    with pytest.raises(RuntimeError, match="not open"):
        backend.load({})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model", ["llama", "qwen"])
def test_cuda_equals_cpu(model, request):
    path, other = request.getfixturevalue(model), request.getfixturevalue(f"other_{model}")
    requests = text_requests() if model == "llama" else image_requests()
    cuda, cpu = TransformersBackend(path), opened(path)
    cuda.open()
    assert cuda._get()[0].device.type == "cuda"
    weights = load_file(other / "model.safetensors")
    for backend in (cuda, cpu):
        backend.load(weights)
    same(cuda.run(requests), cpu.run(requests))
