from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from evomerge.checkpoints import disk
from evomerge.checkpoints.catalog import catalog, fingerprint
from evomerge.checkpoints.digest import combine, tensor_digest
from evomerge.checkpoints.open import open_checkpoint
from evomerge.errors import CandidateError, IntegrityError, OutputError
from evomerge.export import export
from evomerge.instantiate import Merge, model_digest, open_merge
from evomerge.methods import Context, get_method
from evomerge.recipe import Group, Recipe, Source, group_values, load_recipe
from tests.merging import full_expert, lora_delta, lora_expert, tensors_of
from tests.models import tiny_llama, tiny_qwen2_vl

VALUES: dict[str, dict[str, Any]] = {
    "linear": {"weight": {"a": 0.25, "b": 0.5}},
    "task_arithmetic": {"weight": {"a": 0.3, "b": 0.7}},
    "ties": {"weight": {"a": 0.5, "b": 1.0}, "density": 0.3},
    "dare_ties": {"weight": {"a": 0.5, "b": 1.0}, "density": 0.6},
    "slerp": {"t": 0.3},
}
Model = tuple[Path, dict[str, Path]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("llama")
    base = tiny_llama(folder / "base", dtype="bfloat16")
    return base, {
        "full-a": full_expert(base, folder / "full-a", 1),
        "full-b": full_expert(base, folder / "full-b", 2),
        "lora-a": lora_expert(base, folder / "lora-a", 3),
        "lora-b": lora_expert(base, folder / "lora-b", 4),
    }


def merge_of(
    base: Path, experts: dict[str, Path], method: str = "task_arithmetic", **more: Any
) -> Merge:
    group = {"tensors": "language/*/attention,mlp", **VALUES[method]}
    recipe = Recipe(
        base=Source(path=str(base)),
        experts={name: Source(path=str(path)) for name, path in experts.items()},
        method=method,
        parameters=(Group.model_validate(group),),
        **more,
    )
    return open_merge(recipe)


def scored_digest(merge: Merge) -> str:
    made = {name: tensor_digest(tensor) for name, tensor in merge.tensors()}
    return model_digest(catalog(merge.sources.base).digests, made)


def by_hand(merge: Merge, kind: str) -> dict[str, torch.Tensor]:
    """The merged tensors from the experts' files, with none of the code that reads and selects."""
    base, recipe = tensors_of(Path(merge.recipe.base.path)), merge.recipe
    method = get_method(recipe.method)
    paths = {name: Path(recipe.experts[name].path) for name in recipe.order()}
    result = dict(base)

    for name, start in base.items():
        if "layers" in name and name.endswith("proj.weight"):
            experts = [
                tensors_of(path)[name].float()
                if kind == "full"
                else (start.double() + lora_delta(path, name)).float()
                for path in paths.values()
            ]
            result[name] = method.function(
                start.float(),
                experts,
                Context(name, tuple(paths), recipe.seed),
                **group_values(method, recipe.parameters[0], tuple(paths)),
            ).to(start.dtype)
    return result


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("method", VALUES)
def test_what_is_exported_is_what_was_scored(
    llama: Model, tmp_path: Path, method: str, kind: str
) -> None:
    base, made = llama
    merge = merge_of(base, {name: made[f"{kind}-{name}"] for name in "ab"}, method)
    scored = scored_digest(merge)
    out = tmp_path / "out"
    assert export(merge, out, "# A card\n", digest=scored) == scored

    written = tensors_of(out)
    assert combine({name: tensor_digest(t) for name, t in written.items()}) == scored
    assert {n: t.dtype for n, t in written.items()} == {
        n: t.dtype for n, t in tensors_of(base).items()
    }
    assert load_recipe(out / "recipe.yaml") == merge.recipe
    assert (out / "README.md").read_text() == "# A card\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]

    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert all(p.dtype == torch.bfloat16 for p in loaded.parameters())
    expected = AutoModelForCausalLM.from_pretrained(base)
    tensors = by_hand(merge, kind)
    changed = {n for n in tensors if not torch.equal(tensors[n], tensors_of(base)[n])}
    assert len(changed) == 14
    if kind == "lora":  # W + s B A in float64 above, in float32 there: now and then a bf16 apart
        for name in changed:
            torch.testing.assert_close(written[name], tensors[name], rtol=2**-6, atol=2**-6)
        tensors = written
    expected.load_state_dict(tensors)
    ids = AutoTokenizer.from_pretrained(out)("the inner abbey", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, expected(ids).logits)


@pytest.mark.parametrize("dtype", ["base", "bfloat16"])
def test_a_vision_language_model(tmp_path: Path, dtype: str) -> None:
    base = tiny_qwen2_vl(tmp_path / "base")
    experts = {
        "a": full_expert(base, tmp_path / "a", 1),
        "b": lora_expert(base, tmp_path / "b", 2, r"model\.layers\.\d+\.mlp"),
    }
    merge = merge_of(base, experts, dtype=dtype)
    out = tmp_path / "out"
    assert export(merge, out, "") == scored_digest(merge)
    loaded = AutoModelForImageTextToText.from_pretrained(out)
    wanted = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    assert {p.dtype for p in loaded.parameters()} == {wanted}
    assert {t.dtype for t in tensors_of(out).values()} == {wanted}
    for file in ("tokenizer.json", "preprocessor_config.json", "generation_config.json"):
        assert (out / file).read_bytes() == (base / file).read_bytes()


@pytest.mark.parametrize(("dtype", "expected"), [("base", "bfloat16"), ("float32", "float32")])
def test_the_config_says_the_dtype(llama: Model, tmp_path: Path, dtype: str, expected: str) -> None:
    base, made = llama
    export(
        merge_of(base, {"a": made["full-a"], "b": made["full-b"]}, dtype=dtype), tmp_path / "o", ""
    )
    config = json.loads((tmp_path / "o" / "config.json").read_text())
    assert config["dtype"] == expected
    original = json.loads((base / "config.json").read_text())
    assert {**config, "dtype": 0} == {**original, "dtype": 0}


def test_an_export_can_be_merged_again(llama: Model, tmp_path: Path) -> None:
    base, made = llama
    merge = merge_of(base, {"a": made["full-a"], "b": made["lora-b"]})
    export(merge, tmp_path / "first", "")
    again = open_merge(load_recipe(tmp_path / "first" / "recipe.yaml"))
    assert export(again, tmp_path / "second", "") == scored_digest(merge)
    assert fingerprint(open_checkpoint(tmp_path / "second")) == scored_digest(merge)


def test_progress_ends_at_the_whole(llama: Model, tmp_path: Path) -> None:
    base, made = llama
    seen: list[tuple[int, int]] = []
    merge = merge_of(base, {"a": made["full-a"], "b": made["full-b"]})
    export(merge, tmp_path / "out", "", progress=lambda done, total: seen.append((done, total)))
    size = sum(t.nbytes for t in tensors_of(base).values())
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# --- nothing half done ---------------------------------------------------------------------------


@pytest.fixture
def merge(llama: Model) -> Merge:
    base, made = llama
    return merge_of(base, {"a": made["full-a"], "b": made["full-b"]})


def test_other_weights_than_the_scored_ones(merge: Merge, tmp_path: Path) -> None:
    with pytest.raises(
        IntegrityError, match=r"merged weights have digest \w{64}, expected 0{64}; nothing was publ"
    ):
        export(merge, tmp_path / "out", "", digest="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_change_on_the_disk(
    merge: Merge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = disk.step

    def flip(step: str, action: Any, *arguments: Any) -> Any:
        if step == "write" and len(arguments[1]) == 32 * 32 * 2:  # a projection
            raw = bytearray(arguments[1])
            raw[100] ^= 1
            arguments = (arguments[0], raw, *arguments[2:])
        return whole(step, action, *arguments)

    monkeypatch.setattr(disk, "step", flip)
    with pytest.raises(IntegrityError, match="read back from the disk have digest"):
        export(merge, tmp_path / "out", "")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(merge: Merge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = disk.step
    left = 30_000

    def limited(step: str, action: Any, *arguments: Any) -> Any:
        nonlocal left
        left -= len(arguments[1]) if step == "write" else 0
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(step, action, *arguments)

    monkeypatch.setattr(disk, "step", limited)
    with pytest.raises(OutputError, match=r"cannot write .*out: No space left on device"):
        export(merge, tmp_path / "out", "")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken(merge: Merge, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match=r"out exists already"):
        export(merge, out, "")
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    export(merge, out, "")  # an empty directory is free
    assert yaml.safe_load((out / "recipe.yaml").read_text())["method"] == "task_arithmetic"


def test_a_result_that_is_not_finite(llama: Model, tmp_path: Path) -> None:
    base, made = llama
    broken = merge_of(base, {"a": made["full-a"], "b": made["full-b"]}).recipe.model_copy(
        update={
            "parameters": (
                Group.model_validate({"tensors": "language/1/mlp", "weight": 3e38, "scale": 1e5}),
            )
        }
    )
    with pytest.raises(CandidateError, match="not finite"):
        export(open_merge(broken), tmp_path / "out", "")
    assert list(tmp_path.iterdir()) == []


# --- whatever happens, whenever it happens -------------------------------------------------------


class Interrupted:
    """Ends the work at the k-th step that changes the disk, before it or after half of it."""

    def __init__(self, at: int, error: BaseException | None) -> None:
        self.at, self.error, self.seen = at, error, 0
        self.steps: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, step: str, action: Any, *arguments: Any) -> Any:
        with self._lock:
            self.seen += 1
            seen = self.seen
            self.steps.append(step)
        if seen != self.at:
            return action(*arguments)
        if step == "write" and len(arguments[1]) > 1:  # a part gets through
            action(arguments[0], arguments[1][: len(arguments[1]) // 2], arguments[2])
        if self.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()  # this thread may run on until the signal has come through
        raise self.error


@pytest.fixture(scope="module")
def small(llama: Model, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    base, made = llama
    merge = merge_of(base, {"a": made["full-a"], "b": made["lora-b"]}, "ties")
    export(merge, tmp_path_factory.mktemp("once") / "out", "")  # everything is catalogued now
    return merge.recipe


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()]
)
def test_an_export_that_fails_at_any_step_leaves_nothing(
    small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The disk is full, somebody presses Ctrl-C or memory ends: at every write, sync and rename."""
    out = tmp_path / "out"
    monkeypatch.setattr("evomerge.export.SHARD_BYTES", 60_000)
    reached = set()
    for k in range(1, 400):
        out.mkdir()
        with monkeypatch.context() as patch:
            interrupted = Interrupted(k, error)
            patch.setattr(disk, "step", interrupted)
            try:
                export(open_merge(small, streaming=True), out, "card")
            except (OutputError, KeyboardInterrupt, MemoryError):
                reached.add(interrupted.steps[k - 1])
                if "rename" in interrupted.steps[: k - 1]:  # only the parent's sync is left
                    break
                assert content(out) == {}, k
            else:
                break
        assert [p.name for p in tmp_path.iterdir()] == ["out"], k
        out.rmdir()
    assert k > 40
    assert reached == {"mkdir", "create", "write", "fsync", "rename"}
    expected = merge_digest(out)
    export(open_merge(small), tmp_path / "again", "card")
    assert content(tmp_path / "again").keys() == content(out).keys()
    assert merge_digest(tmp_path / "again") == expected


def merge_digest(out: Path) -> str:
    return combine({name: tensor_digest(t) for name, t in tensors_of(out).items()})


def test_an_export_that_is_killed_at_any_step_leaves_the_old_or_the_new(
    small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``kill -9`` at every write, sync and rename; the next export cleans up and succeeds."""
    monkeypatch.setattr("evomerge.export.SHARD_BYTES", 60_000)
    export(open_merge(small, streaming=True), tmp_path / "reference", "card")
    expected = content(tmp_path / "reference")
    out = tmp_path / "out"
    missing = 0
    for k in range(1, 400):
        out.mkdir(exist_ok=True)
        child = os.fork()
        if child == 0:  # no thread of the parent is at work; the child ends by a signal or here
            code = 1
            with suppress(BaseException):
                disk.step = Interrupted(k, None)
                export(open_merge(small, streaming=True), out, "card")
                code = 0
            os._exit(code)
        _, status = os.waitpid(child, 0)
        found = content(out)
        assert found in ({}, expected), k
        missing += found == {}
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        if found:
            shutil.rmtree(out)
    assert missing > 40
    assert content(out) == expected
    left = list(tmp_path.glob(".out.staging-*"))
    assert len(left) >= missing - 2
    shutil.rmtree(out)
    for each in left:
        os.utime(each, (0, 0))
    export(open_merge(small, streaming=True), out, "card")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "reference"]
