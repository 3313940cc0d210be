from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from evomerge.checkpoints import disk
from evomerge.checkpoints.companions import companion_files, needs_code
from evomerge.checkpoints.digest import DTYPE_NAMES, DTYPES, tensor_digest
from evomerge.checkpoints.open import open_checkpoint
from evomerge.checkpoints.write import TensorSpec, write_checkpoint
from evomerge.errors import IntegrityError, OutputError

Tensors = dict[str, torch.Tensor]
CONFIG = {"config.json": b'{"model_type": "llama"}'}


def specs(tensors: Tensors) -> list[TensorSpec]:
    return [
        TensorSpec(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]


def save(out: Path, tensors: Tensors, **options: Any) -> None:
    write_checkpoint(out, specs(tensors), tensors.__getitem__, CONFIG, **options)


def equal(path: Path, tensors: Tensors) -> bool:
    found = open_checkpoint(path)
    return set(found.tensors) == set(tensors) and all(
        found.read(name).dtype == tensor.dtype and torch.equal(found.read(name), tensor)
        for name, tensor in tensors.items()
    )


def test_single_file(tmp_path: Path, weights: Tensors) -> None:
    out = tmp_path / "deep" / "er" / "out"
    save(out, weights)
    assert sorted(each.name for each in out.iterdir()) == ["config.json", "model.safetensors"]
    assert equal(out, weights)
    assert [each.name for each in out.parent.iterdir()] == ["out"]
    reference = load_file(out / "model.safetensors")
    assert all(torch.equal(reference[name], tensor) for name, tensor in weights.items())


def test_file_format(tmp_path: Path, weights: Tensors) -> None:
    save(tmp_path / "out", weights)
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert list(header) == list(weights)


def test_shards(tmp_path: Path, weights: Tensors) -> None:
    out = tmp_path / "out"
    save(out, weights, shard_bytes=100)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(each.numel() * 4 for each in weights.values())
    files = sorted({*index["weight_map"].values()})
    count = len(files)
    assert files == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for file in files:
        held = load_file(out / file)
        assert len(held) == 1 or sum(each.numel() * 4 for each in held.values()) <= 100
        assert all(index["weight_map"][name] == file for name in held)
    assert equal(out, weights)
    assert not (out / "model.safetensors").exists()


@settings(deadline=None)  # every file is synced to a disk that others use too
@given(
    layout=st.lists(
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
        max_size=8,
    ),
    shard_bytes=st.integers(1, 400),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    layout: list[tuple[str, list[int]]],
    shard_bytes: int,
) -> None:
    tensors = {
        f"t{i}": torch.randint(0, 2, shape).to(DTYPES[dtype])
        for i, (dtype, shape) in enumerate(layout)
    }
    parent = tmp_path_factory.mktemp("x")
    for name, size in (("one", 1 << 30), ("many", shard_bytes)):
        save(parent / name, tensors, shard_bytes=size)
        for tensor_name, tensor in tensors.items():
            read = open_checkpoint(parent / name).read(tensor_name)
            assert read.dtype == tensor.dtype
            assert read.shape == tensor.shape
            assert read.tolist() == tensor.tolist()


def test_strides_do_not_matter(tmp_path: Path) -> None:
    tensor = torch.randn(3, 5)
    save(tmp_path / "out", {"a": tensor.T, "b": tensor[:, ::2]})
    assert equal(tmp_path / "out", {"a": tensor.T.contiguous(), "b": tensor[:, ::2].contiguous()})


def test_companions_are_contents_or_files(tmp_path: Path, weights: Tensors) -> None:
    source = tmp_path / "tokenizer.json"
    source.write_bytes(b"x" * 1000)
    companions: dict[str, bytes | Path] = {
        **CONFIG,
        "tokenizer.json": source,
        "additional_chat_templates/tool.jinja": b"{{ x }}",
    }
    out = tmp_path / "out"
    write_checkpoint(out, specs(weights), weights.__getitem__, companions)
    assert (out / "tokenizer.json").read_bytes() == source.read_bytes()
    assert (out / "additional_chat_templates" / "tool.jinja").read_bytes() == b"{{ x }}"


@pytest.mark.parametrize(
    "name",
    ["/etc/x", "../x", "a/../../x", "", ".", "model.safetensors", "model.safetensors.index.json"],
)
def test_companion_names_are_checked(tmp_path: Path, weights: Tensors, name: str) -> None:
    with pytest.raises(OutputError, match="companion file"):
        write_checkpoint(tmp_path / "out", specs(weights), weights.__getitem__, {name: b""})
    assert list(tmp_path.iterdir()) == []


def test_same_name_twice(tmp_path: Path) -> None:
    twice = [TensorSpec("a", "F32", (1,))] * 2
    with pytest.raises(OutputError, match=r"'a'.*twice"):
        write_checkpoint(tmp_path / "out", twice, lambda name: torch.zeros(1), CONFIG)


@pytest.mark.parametrize("kind", ["full", "file", "link"])
def test_existing_output_is_refused_before_any_work(
    tmp_path: Path, weights: Tensors, kind: str
) -> None:
    out = tmp_path / "out"
    if kind == "full":
        out.mkdir()
        (out / "precious").write_text("x")
    elif kind == "file":
        out.write_text("x")
    else:
        (tmp_path / "elsewhere").mkdir()
        out.symlink_to(tmp_path / "elsewhere")
    produced: list[str] = []

    def produce(name: str) -> torch.Tensor:
        produced.append(name)
        return weights[name]

    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="exists already"):
        write_checkpoint(out, specs(weights), produce, CONFIG)
    assert produced == []
    assert sorted(tmp_path.rglob("*")) == before


def test_empty_output_directory_is_used(tmp_path: Path, weights: Tensors) -> None:
    (tmp_path / "out").mkdir()
    save(tmp_path / "out", weights)
    assert equal(tmp_path / "out", weights)


def test_output_that_appears_meanwhile_is_kept(tmp_path: Path, weights: Tensors) -> None:
    out = tmp_path / "out"

    def appear(digests: Mapping[str, str]) -> dict[str, bytes]:
        out.mkdir()
        (out / "precious").write_text("x")
        return {}

    with pytest.raises(OutputError, match="cannot write"):
        save(out, weights, complete=appear)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    assert (out / "precious").read_text() == "x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError, SystemExit])
@pytest.mark.parametrize("where", ["produce", "complete", "progress"])
def test_any_exception_leaves_nothing(
    tmp_path: Path, weights: Tensors, error: type[BaseException], where: str
) -> None:
    def fail(*_: object) -> None:
        raise error("made up")

    def produce(name: str) -> torch.Tensor:
        if where == "produce" and name == "model.norm.weight":
            fail()
        return weights[name]

    with pytest.raises(error, match="made up"):
        write_checkpoint(
            tmp_path / "out",
            specs(weights),
            produce,
            CONFIG,
            shard_bytes=100,
            complete=fail if where == "complete" else None,  # type: ignore[arg-type]
            progress=fail if where == "progress" else None,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("kind", ["mkdir", "create", "write", "fsync", "rename"])
def test_a_failure_at_every_step_leaves_nothing(
    tmp_path: Path,
    weights: Tensors,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    error: BaseException,
) -> None:
    messages = []
    for k in range(1, 100):
        count = 0

        def failing(step: str, action: Callable[..., Any], *arguments: Any) -> Any:
            nonlocal count
            count += step == kind
            if step == kind and count == k:  # noqa: B023
                raise error
            return action(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(disk, "step", failing)
            with suppress(OutputError, KeyboardInterrupt):
                try:
                    save(tmp_path / "out", weights, shard_bytes=100)
                except OutputError as caught:
                    messages.append(str(caught))
                    raise
        if (tmp_path / "out").exists():
            break
        assert list(tmp_path.iterdir()) == []
    assert k > (1 if kind in ("mkdir", "rename") else 5)
    assert all("No space left on device: free space" in each for each in messages)
    assert equal(tmp_path / "out", weights)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_is_too_small_is_seen_before_the_work(
    tmp_path: Path, weights: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SimpleNamespace(total=100, free=50)
    monkeypatch.setattr("shutil.disk_usage", lambda path: small)
    with pytest.raises(OutputError, match=r"it takes \d+ bytes, 50 are free"):
        write_checkpoint(
            tmp_path / "out", specs(weights), lambda name: pytest.fail("made a tensor"), CONFIG
        )
    assert list(tmp_path.iterdir()) == []


def test_only_abandoned_staging_directories_are_removed(tmp_path: Path, weights: Tensors) -> None:
    abandoned, young, at_work = (tmp_path / f".out.staging-{n}" for n in "012")
    for each in (abandoned, young, at_work):
        each.mkdir()
        (each / "model.safetensors").write_bytes(b"x")
    for each in (abandoned, at_work):
        os.utime(each, (0, 0))
    with disk.locked(at_work):
        save(tmp_path / "out", weights)
    assert sorted(p.name for p in tmp_path.iterdir()) == [young.name, at_work.name, "out"]


@pytest.mark.parametrize("workers", [1, 4])
def test_tensors_may_come_in_parts(tmp_path: Path, weights: Tensors, workers: int) -> None:
    def parts(name: str) -> list[torch.Tensor]:
        return list(weights[name].flatten().split(5))

    write_checkpoint(
        tmp_path / "out", specs(weights), parts, CONFIG, shard_bytes=100, workers=workers
    )
    assert equal(tmp_path / "out", weights)


@pytest.mark.parametrize("parts", [[torch.zeros(5)], [torch.zeros(4), torch.zeros(3)], []])
def test_parts_are_held_to_the_promise(tmp_path: Path, parts: list[torch.Tensor]) -> None:
    with pytest.raises(IntegrityError, match=r"'a' came as .*expected F32 \[3, 2\]"):
        write_checkpoint(
            tmp_path / "out", [TensorSpec("a", "F32", (3, 2))], lambda name: parts, CONFIG
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3), torch.zeros(6), torch.zeros(3, 2).half()])
def test_produce_is_held_to_its_promise(tmp_path: Path, wrong: torch.Tensor) -> None:
    with pytest.raises(IntegrityError, match=r"'a' came as F\d+ \[.*expected F32 \[3, 2\]"):
        write_checkpoint(
            tmp_path / "out", [TensorSpec("a", "F32", (3, 2))], lambda name: wrong, CONFIG
        )
    assert list(tmp_path.iterdir()) == []


def test_what_is_made_last_depends_on_the_digests(tmp_path: Path, weights: Tensors) -> None:
    def complete(digests: Mapping[str, str]) -> dict[str, bytes | Path]:
        return {"digests.json": json.dumps(dict(digests)).encode()}

    expected = {name: tensor_digest(tensor) for name, tensor in weights.items()}
    made = write_checkpoint(
        tmp_path / "out", specs(weights), weights.__getitem__, CONFIG, complete=complete
    )
    assert made == expected
    assert json.loads((tmp_path / "out" / "digests.json").read_text()) == expected


def test_progress_counts_bytes(tmp_path: Path, weights: Tensors) -> None:
    seen: list[tuple[int, int]] = []
    save(tmp_path / "out", weights, progress=lambda done, total: seen.append((done, total)))
    total = sum(each.numel() * 4 for each in weights.values())
    assert len(seen) == len(weights)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_published_directory_has_ordinary_permissions(tmp_path: Path, weights: Tensors) -> None:
    save(tmp_path / "out", weights)
    (tmp_path / "reference").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "reference").stat().st_mode


def test_companion_files_leave_code_and_weights_behind(
    make: Callable[..., Path], weights: Tensors
) -> None:
    path = make("m", weights, config={"auto_map": {"AutoModel": "modeling_x.X"}})
    kept = [
        "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
        "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
        "spiece.model", "preprocessor_config.json", "processor_config.json",
        "video_preprocessor_config.json", "chat_template.jinja", "chat_template.json",
        "additional_chat_templates/tool.jinja",
    ]  # fmt: skip
    left = ["modeling_x.py", "tokenization_x.py", "tokenizer.py", "README.md", "optimizer.pt",
            "training_args.bin", "trainer_state.json"]  # fmt: skip
    (path / "additional_chat_templates").mkdir()
    for name in (*kept, *left):
        (path / name).write_text("{}")
    checkpoint = open_checkpoint(path)
    assert set(companion_files(checkpoint)) == {*kept, "config.json"}
    assert companion_files(checkpoint)["vocab.json"] == path / "vocab.json"
    assert needs_code(checkpoint)


def test_transformers_loads_what_was_written(tmp_path: Path) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    text = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 40, "head_dim": 8,
    }  # fmt: skip
    seen = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=seen)
    model = transformers.Qwen2VLForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    for name, shard_bytes in (("one", 1 << 30), ("many", 2000)):
        write_checkpoint(
            tmp_path / name,
            [TensorSpec(info.name, info.dtype, info.shape) for info in base.tensors.values()],
            lambda key: base.read(key) * 2,
            companion_files(base),
            shard_bytes=shard_bytes,
        )
        loaded, report = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
            tmp_path / name, dtype="auto", output_loading_info=True
        )
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert loaded.dtype == torch.bfloat16
        for key, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], tensor * 2)
