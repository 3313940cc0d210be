"""Writing: what is recorded stays, what is not leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.calibrate.store import open_store
from evomerge.checkpoints.statistics import Origin, open_statistics
from evomerge.errors import CheckpointError, OutputError

BASE = "b" * 64
ORIGIN = Origin("a" * 64, 3, 40, "c" * 64, {"dtype": "float32"})


def test_what_was_recorded_is_found_again(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", BASE) as store:
        draft = store.begin("vqa", "gram", ORIGIN)
        draft.record({"q": store.write(torch.ones(3))})
        store.write(torch.zeros(3))  # written, not recorded
    with open_store(tmp_path / "s", BASE) as store:
        again = store.begin("vqa", "gram", ORIGIN)
        assert list(again.collection.tensors) == ["q"]
        assert torch.equal(again.read("q"), torch.ones(3))
        again.record({"k": store.write(torch.zeros(3))})
        again.finish()
    found = open_statistics(str(tmp_path / "s"))
    assert found.read("gram", "vqa", "q") is not None
    assert found.read("gram", "vqa", "k") is not None
    assert not list((tmp_path / "s" / "unfinished").glob("*.json"))


@pytest.mark.parametrize(
    ("source", "kind", "origin"),
    [
        ("ocr", "gram", ORIGIN),
        ("vqa", "fisher", ORIGIN),
        ("vqa", "gram", Origin("a" * 64, 4, 40, "c" * 64, {"dtype": "float32"})),
        ("vqa", "gram", Origin("a" * 64, 3, 40, "c" * 64, {"dtype": "bfloat16"})),
    ],
)
def test_others_do_not_find_it(tmp_path: Path, source: str, kind: str, origin: Origin) -> None:
    with open_store(tmp_path / "s", BASE) as store:
        store.begin("vqa", "gram", ORIGIN).record({"q": store.write(torch.ones(3))})
    with open_store(tmp_path / "s", BASE) as store:
        assert not store.begin(source, kind, origin).collection.tensors


def test_a_recorded_file_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", BASE) as store:
        shas = {n: store.write(torch.full((3,), float(i))) for i, n in enumerate("qk")}
        store.begin("vqa", "gram", ORIGIN).record(shas)
    file = tmp_path / "s" / "tensors" / f"{shas['q']}.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with open_store(tmp_path / "s", BASE) as store:
        draft = store.begin("vqa", "gram", ORIGIN)
        assert list(draft.collection.tensors) == ["k"]
        assert store.write(torch.zeros(3)) == shas["q"]
        draft.record({"q": shas["q"]})
        assert torch.equal(draft.read("q"), torch.zeros(3))


@pytest.mark.parametrize("text", ["", "{", '{"tensors": 3}', '{"tensors": {"q": "../x"}}', "[]"])
def test_a_damaged_journal_counts_as_none(tmp_path: Path, text: str) -> None:
    with open_store(tmp_path / "s", BASE) as store:
        store.begin("vqa", "gram", ORIGIN).record({"q": store.write(torch.ones(3))})
    (journal,) = (tmp_path / "s" / "unfinished").glob("*.json")
    journal.write_text(text)
    with open_store(tmp_path / "s", BASE) as store:
        assert not store.begin("vqa", "gram", ORIGIN).collection.tensors


def test_a_finished_collection_is_found_and_not_published_twice(tmp_path: Path) -> None:
    for expected in (False, True):
        with open_store(tmp_path / "s", BASE) as store:
            draft = store.begin("vqa", "gram", ORIGIN)
            assert draft.finished is expected
            draft.record({"q": store.write(torch.ones(3))})
            draft.finish()
    assert len(open_statistics(str(tmp_path / "s")).collections) == 1


def test_what_is_damaged_of_a_finished_collection_is_made_again(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", BASE) as store:
        draft = store.begin("vqa", "gram", ORIGIN)
        draft.record({n: store.write(torch.full((3,), float(i))) for i, n in enumerate("qk")})
        draft.finish()
    before = open_statistics(str(tmp_path / "s"))
    (tmp_path / "s" / "tensors" / f"{draft.collection.tensors['q']}.safetensors").unlink()
    with open_store(tmp_path / "s", BASE) as store:
        again = store.begin("vqa", "gram", ORIGIN)
        assert not again.finished
        assert list(again.collection.tensors) == ["k"]
        again.record({"q": store.write(torch.zeros(3))})
        again.finish()
    after = open_statistics(str(tmp_path / "s"))
    assert after.fingerprint == before.fingerprint
    mended = after.read("gram", "vqa", "q")
    assert mended is not None
    assert torch.equal(mended, torch.zeros(3))


def test_a_finished_collection_of_another_origin_is_kept(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", BASE) as store:
        store.begin("vqa", "gram", ORIGIN).finish()
    other = Origin("a" * 64, 5, 40, "c" * 64, {"dtype": "bfloat16"})
    with (
        open_store(tmp_path / "s", BASE) as store,
        pytest.raises(OutputError, match=r"dtype float32 \(now bfloat16\); items 3 \(now 5\)"),
    ):
        store.begin("vqa", "gram", other)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        open_store(tmp_path / "s", BASE),
        pytest.raises(OutputError, match="in use"),
        open_store(tmp_path / "s", BASE),
    ):
        pass
    with open_store(tmp_path / "s", BASE):
        pass


def test_what_a_killed_writer_left_half_written_goes(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", BASE):
        pass
    left = tmp_path / "s" / "tensors" / ".0000.safetensors.1234"
    left.write_bytes(b"half")
    with open_store(tmp_path / "s", BASE):
        assert not left.exists()


def test_an_exception_while_writing_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with open_store(tmp_path / "s", BASE) as store:
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match=r"No space left.*run the same command again"):
            store.write(torch.ones(3))
        assert not list((tmp_path / "s" / "tensors").iterdir())


def test_places_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("full", "file"):
        with pytest.raises(OutputError, match="another --out"), open_store(tmp_path / name, BASE):
            pass
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    with open_store(tmp_path / "empty", BASE):
        pass


def test_another_base(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", BASE) as store:
        store.begin("vqa", "gram", ORIGIN).finish()
    with (
        pytest.raises(OutputError, match="another base"),
        open_store(tmp_path / "s", "d" * 64),
    ):
        pass


def test_a_damaged_manifest_is_not_written_over(tmp_path: Path) -> None:
    with open_store(tmp_path / "s", BASE) as store:
        store.begin("vqa", "gram", ORIGIN).finish()
    (tmp_path / "s" / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"), open_store(tmp_path / "s", BASE):
        pass
