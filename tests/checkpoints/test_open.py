from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from evomerge.checkpoints.headers import read_header
from evomerge.checkpoints.open import is_adapter, open_checkpoint
from evomerge.errors import CheckpointError
from evomerge.zoo import paths

Tensors = dict[str, torch.Tensor]
Make = Callable[..., Path]


def raw(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_was_stored_in_every_dtype(make: Make) -> None:
    stored = {
        "a": torch.randn(3, 5),
        "b": torch.randn(2).bfloat16(),
        "c": torch.randn(1, 2, 3).half(),
        "d": torch.tensor(7),
        "e": torch.zeros(0, 4),
    }
    checkpoint = open_checkpoint(make("m", stored))
    assert set(checkpoint.tensors) == set(stored)
    for name, tensor in stored.items():
        read = checkpoint.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert checkpoint.tensors[name].nbytes == tensor.numel() * tensor.element_size()
    assert checkpoint.tensors["b"].dtype == "BF16"
    assert checkpoint.config["model_type"] == "llama"


def test_sharded_equals_single(make: Make, weights: Tensors) -> None:
    one, three = (
        open_checkpoint(make("one", weights)),
        open_checkpoint(make("three", weights, shards=3)),
    )
    assert set(one.tensors) == set(three.tensors)
    assert len({info.file for info in three.tensors.values()}) == 3
    assert all(torch.equal(one.read(name), three.read(name)) for name in weights)


def test_unknown_tensor(make: Make, weights: Tensors) -> None:
    with pytest.raises(CheckpointError, match="has no tensor 'nonsense'"):
        open_checkpoint(make("m", weights)).read("nonsense")


@pytest.mark.parametrize("kept", [0, 5, 8, 40, -1])
def test_truncated_file_names_itself_and_its_sizes(make: Make, weights: Tensors, kept: int) -> None:
    path = make("m", weights)
    file = path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:kept])
    with pytest.raises(
        CheckpointError, match=r"truncated: expected .* bytes.*download it again"
    ) as caught:
        open_checkpoint(path)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    if kept == -1:
        size = sum(each.numel() * 4 for each in weights.values())
        assert f"expected {size} bytes after its header, found {size - 1}" in str(caught.value)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{nonsense", b"", "damaged header"),
        ([], b"", "JSON object"),
        (b"[" * 100_000, b"", "damaged header"),
        (b'{"a": {}, "a": {}}', b"", "twice"),
        ({"a": 3}, b"", "has the entry"),
        ({"a": entry("F99", [1], 0, 4)}, b"0000", "F99"),
        ({"a": entry("F32", [-1], 0, 4)}, b"0000", "has the entry"),
        ({"a": entry("F32", [True], 0, 4)}, b"0000", "has the entry"),
        ({"a": entry("F32", [2], 0, 4)}, b"0000", "has 4 bytes, expected 8"),
        ({"a": entry("F32", [1], 4, 0)}, b"0000", "has -4 bytes"),
        ({"a": entry("F32", [1], 4, 8)}, b"00000000", "begin at byte 4, expected 0"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, b"0000", "begin at byte 0"),
        ({"a": entry("F32", [4], 0, 16)}, b"0000", "truncated: expected 16 bytes"),
        ({"a": entry("F32", [1], 0, 4)}, b"00000", "belong to no tensor"),
    ],
)
def test_damaged_header(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    file = raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)


def test_header_length_from_outer_space(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        read_header(file)


def test_git_lfs_pointer(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read_header(file)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", ".hidden.safetensors",
     "x.bin", "a\\b.safetensors", "a\0.safetensors", 3, None, ["x"]],
)  # fmt: skip
def test_names_in_an_index_are_not_trusted(make: Make, weights: Tensors, name: Any) -> None:
    path = make("m", weights, shards=2)
    raw(path.parent / "x.safetensors", {"lm_head.weight": entry("F32", [1], 0, 4)}, b"0000")
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="file in the same directory"):
        open_checkpoint(path)


def test_index_and_shard_disagree(make: Make, weights: Tensors) -> None:
    path = make("m", weights, shards=2)
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    file = content["weight_map"]["lm_head.weight"]
    content["weight_map"]["ghost"] = file
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"lacks tensor 'ghost' that .*download it again"):
        open_checkpoint(path)


def test_missing_shard(make: Make, weights: Tensors) -> None:
    path = make("m", weights, shards=2)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors: No such file"):
        open_checkpoint(path)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[]", "{"])
def test_unusable_index(make: Make, weights: Tensors, content: str) -> None:
    path = make("m", weights, shards=2)
    (path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_checkpoint(path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(CheckpointError, match=r"pickled weights \(pytorch_model.bin\).*convert"):
        open_checkpoint(tmp_path)


def test_directory_without_weights_or_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no weights"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "reference", ["./no/such", "nowhere", "a/b/c", "/no/such", "~/no-such-model"]
)
def test_path_that_is_not_there(reference: str) -> None:
    with pytest.raises(CheckpointError, match="is no directory"):
        open_checkpoint(reference)


def test_path_to_a_file(make: Make, weights: Tensors) -> None:
    with pytest.raises(CheckpointError, match="is a file"):
        open_checkpoint(make("m", weights) / "model.safetensors")


def test_hub_name_is_downloaded_without_code(
    make: Make, weights: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make("m", weights)
    asked: list[Any] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_checkpoint("org/model-1.5").path == path
    assert asked[0][0] == "org/model-1.5"
    assert not any(pattern.endswith(("py", "bin", "pt", "*")) for pattern in asked[0][1])


def test_hub_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=r"'org/model'.*\(no route\).*network") as caught:
        open_checkpoint("org/model")
    assert "\n" not in str(caught.value)


def test_a_path_wins_over_a_hub_name(
    make: Make, weights: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make("m", weights)
    monkeypatch.chdir(path.parent.parent)
    assert open_checkpoint(f"{path.parent.name}/m").config["model_type"] == "llama"


def test_zoo_reference(make: Make, weights: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("m", weights)
    monkeypatch.setattr(paths, "resolve", {"zoo:base": path}.__getitem__)
    assert open_checkpoint("zoo:base").path == path


def test_what_counts_as_an_adapter(make: Make, weights: Tensors) -> None:
    path = make("m", weights)
    (path / "adapter_config.json").write_text("{}")
    assert not is_adapter(path)
    (path / "model.safetensors").unlink()
    assert is_adapter(path)
