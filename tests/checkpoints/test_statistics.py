"""Reading a directory of statistics, whole and damaged."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.calibrate.store import open_store
from evomerge.checkpoints.statistics import Origin, Statistics, open_statistics
from evomerge.errors import CheckpointError

BASE = "b" * 64
ORIGIN = Origin("a" * 64, 3, 40, "c" * 64, {"dtype": "float32", "batch": 8})


def values() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(4, 4, generator=generator)
    return {"q": q, "k": q.clone(), "up": torch.randn(3, generator=generator)}


def write(path: Path, kinds: tuple[str, ...] = ("gram",), order: int = 1) -> Path:
    with open_store(path, BASE) as store:
        for kind in kinds[::order]:
            draft = store.begin("vqa", kind, ORIGIN)
            draft.record({name: store.write(t) for name, t in list(values().items())[::order]})
            draft.finish()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "s")


def only_file(folder: Path) -> Path:
    """The file of "up"."""
    entry = json.loads((folder / "manifest.json").read_text())["sources"]["vqa"]["gram"]
    return folder / "tensors" / f"{entry['tensors']['up']}.safetensors"


def test_what_was_written_is_read(folder: Path) -> None:
    found = open_statistics(str(folder))
    assert found.sources == {"vqa": "a" * 64}
    assert found.kinds("vqa") == {"gram"}
    assert found.kinds("ocr") == frozenset()
    for name, tensor in values().items():
        again = found.read("gram", "vqa", name)
        assert again is not None
        assert again.dtype == torch.float32
        assert torch.equal(again, tensor)
    assert found.collections[0].origin == ORIGIN
    for kind, source, name in (("gram", "vqa", "no"), ("gram", "ocr", "q"), ("fisher", "vqa", "q")):
        assert found.read(kind, source, name) is None


def test_a_tensor_outlives_what_it_was_read_from(folder: Path) -> None:
    tensor = open_statistics(str(folder)).read("gram", "vqa", "up")
    gc.collect()
    assert tensor is not None
    assert torch.equal(tensor, values()["up"])


def test_files_are_ordinary_and_named_by_their_content(folder: Path) -> None:
    files = sorted((folder / "tensors").iterdir())
    assert len(files) == 2  # q and k are equal
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
        assert list(load_file(file)) == ["value"]
    assert open_statistics(str(folder)).size() == sum(f.stat().st_size for f in files)


def test_an_empty_and_a_scalar_tensor(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", BASE) as store:
        draft = store.begin("vqa", "gram", ORIGIN)
        odd = {"none": torch.zeros(0, 3), "one": torch.tensor(2.0)}
        draft.record({name: store.write(t) for name, t in odd.items()})
        draft.finish()
    found = open_statistics(str(tmp_path / "s"))
    for name, tensor in odd.items():
        again = found.read("gram", "vqa", name)
        assert again is not None
        assert torch.equal(again, tensor)
        assert again.shape == tensor.shape


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    def of(path: Path) -> str:
        return open_statistics(str(path)).fingerprint

    first = write(tmp_path / "a", ("gram", "fisher"))
    again = write(tmp_path / "b", ("gram", "fisher"), order=-1)
    assert of(first) == of(again)
    assert (first / "manifest.json").read_bytes() == (again / "manifest.json").read_bytes()
    assert of(first) != of(write(tmp_path / "c", ("gram",)))
    shutil.move(first, tmp_path / "elsewhere")
    assert of(tmp_path / "elsewhere") == of(again)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="evomerge calibrate"):
        open_statistics(str(tmp_path / "none"))


def test_unfinished_only(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", BASE) as store:
        store.begin("vqa", "gram", ORIGIN).record({"up": store.write(torch.ones(3))})
    with pytest.raises(CheckpointError, match="run the same command again to finish"):
        open_statistics(str(tmp_path / "s"))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def other_dtype(file: Path) -> None:
    save_file({"value": torch.ones(3, dtype=torch.float16)}, file)


@pytest.mark.parametrize(
    "damage", [flip, other_dtype, lambda f: f.write_bytes(f.read_bytes()[:-4]), Path.unlink]
)
def test_a_damaged_file(folder: Path, damage: Callable[[Path], Any]) -> None:
    before = open_statistics(str(folder))
    file = only_file(folder)
    damage(file)
    opened: list[Statistics] = [before]
    if file.exists():
        opened.append(open_statistics(str(folder)))
    else:
        with pytest.raises(CheckpointError, match="missing"):
            open_statistics(str(folder))
    for found in opened:
        with pytest.raises(CheckpointError, match=f"{file.stem}.*evomerge calibrate"):
            found.read("gram", "vqa", "up")
        assert found.read("gram", "vqa", "q") is not None


def test_a_file_that_is_no_tensor_of_ours(folder: Path) -> None:
    """Its name is its hash, but what it holds is something else."""
    save_file({"other": torch.ones(2)}, folder / "x")
    sha = hashlib.sha256((folder / "x").read_bytes()).hexdigest()
    (folder / "x").rename(folder / "tensors" / f"{sha}.safetensors")
    edit(folder, lambda m: m["sources"]["vqa"]["gram"]["tensors"].update(up=sha))
    with pytest.raises(CheckpointError, match="no float32 tensor"):
        open_statistics(str(folder)).read("gram", "vqa", "up")


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "name",
    ["../../secret", "/etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n", "", None, 7, ["a"]],
)
def test_names_of_files_are_not_trusted(folder: Path, name: object) -> None:
    edit(folder, lambda m: m["sources"]["vqa"]["gram"]["tensors"].update(up=name))
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        open_statistics(str(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(version=2),
        lambda m: m.update(format="other"),
        lambda m: m.pop("base"),
        lambda m: m.update(sources=[1]),
        lambda m: m["sources"]["vqa"]["gram"].pop("items"),
        lambda m: m["sources"]["vqa"]["gram"].update(tensors="x"),
        lambda m: m["sources"].update(vqa=3),
    ],
)
def test_a_damaged_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit(folder, change)
    with pytest.raises(CheckpointError, match=r"manifest\.json.*expected version 1"):
        open_statistics(str(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100_000])
def test_a_manifest_that_is_no_object(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        open_statistics(str(folder))
