from __future__ import annotations

import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import OutputError
from evomerge.ledger.events import Event
from evomerge.ledger.store import NAME, Ledger, open_ledger, read_events


def appended(path: Path, *events: Event) -> list[Event]:
    ledger = open_ledger(path)
    try:
        return [ledger.append(event) for event in events]
    finally:
        ledger.close()


def test_events_come_back_in_order_and_equal(tmp_path: Path) -> None:
    written = appended(
        tmp_path / "run",
        Event("study", body={"name": "größe", "nested": {"a": [1, None, True, "x"]}}),
        Event("asked", 0, {"genome": [0.25, 0.5]}),
        Event("lost", 0, timing={"seconds": 1.5}),
    )
    assert read_events(tmp_path / "run") == written
    assert [e.kind for e in written] == ["study", "asked", "lost"]
    assert written[0].time <= written[1].time <= written[2].time
    assert {e.session for e in written} == {1}


def test_floats_survive_to_the_last_bit(tmp_path: Path) -> None:
    draw = random.Random(0)
    bits = [struct.pack("<Q", draw.getrandbits(64)) for _ in range(500)]
    numbers = [x for (x,) in (struct.unpack("<d", b) for b in bits) if x - x == 0]
    numbers += [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 1e16, 1e-7]
    appended(tmp_path, Event("asked", 0, {"genome": numbers}, {"seconds": 1 / 3}))
    (event,) = read_events(tmp_path)
    assert [x.hex() for x in event.body["genome"]] == [x.hex() for x in numbers]
    assert event.timing["seconds"].hex() == (1 / 3).hex()


def test_the_order_of_experts_survives(tmp_path: Path) -> None:
    experts = {"vqa": 1, "chart": 2, "ocr": 0}
    appended(tmp_path, Event("study", body={"experts": experts}))
    (event,) = read_events(tmp_path)
    assert list(event.body["experts"]) == ["vqa", "chart", "ocr"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_is_refused_and_nothing_is_written(
    tmp_path: Path, number: float
) -> None:
    ledger = open_ledger(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        ledger.append(Event("asked", 0, {"genome": [number]}))
    assert ledger.events() == []
    ledger.append(Event("asked", 0, {"genome": [0.5]}))
    assert len(ledger.events()) == 1
    ledger.close()


def test_sessions_are_numbered_on(tmp_path: Path) -> None:
    appended(tmp_path, Event("study"))
    appended(tmp_path, Event("finished", body={"reason": "budget"}))
    assert [e.session for e in read_events(tmp_path)] == [1, 2]


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    first = open_ledger(tmp_path)
    with pytest.raises(OutputError, match=r"in use by another evomerge run.*another --out"):
        open_ledger(tmp_path)
    first.append(Event("study"))
    first.close()
    second = open_ledger(tmp_path)
    assert [e.kind for e in second.events()] == ["study"]
    second.close()


def test_reading_is_possible_while_a_run_writes(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.append(Event("study"))
    assert [e.kind for e in read_events(tmp_path)] == ["study"]
    ledger.append(Event("finished", body={"reason": "budget"}))
    assert len(read_events(tmp_path)) == 2
    ledger.close()


WRITER = """
import sys
from pathlib import Path
from evomerge.ledger.events import Event
from evomerge.ledger.store import open_ledger
ledger = open_ledger(Path(sys.argv[1]))
number = len(ledger.events())
print("open", flush=True)
while True:
    ledger.append(Event("asked", number, {"genome": [number / 7] * 200}))
    print(number, flush=True)
    number += 1
"""


def test_a_ledger_killed_while_appending_holds_a_prefix(tmp_path: Path) -> None:
    acknowledged = -1
    for stop in (1, 7, 20):
        # stdout is read to the end below, so that the writer is killed at an arbitrary point
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        with writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "open\n"
            with pytest.raises(OutputError, match="in use by another"):
                open_ledger(tmp_path)
            for _ in range(stop):
                writer.stdout.readline()
            os.kill(writer.pid, signal.SIGKILL)
            lines = writer.stdout.read().split()
        acknowledged = max([acknowledged, *map(int, lines)])
        ledger = open_ledger(tmp_path)  # the lock died with its holder
        events = ledger.events()
        ledger.close()
        assert [e.candidate for e in events] == list(range(len(events)))
        assert all(e.body == {"genome": [e.candidate / 7] * 200} for e in events)  # type: ignore[operator]
        assert len(events) >= acknowledged + 1  # what append returned from is there


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("my notes, not a database " * 100)
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(OutputError, match=r"ledger\.db cannot be used as a ledger.*another --out"):
        open_ledger(tmp_path)
    with pytest.raises(OutputError, match="cannot be read as a ledger"):
        read_events(tmp_path)
    assert (tmp_path / NAME).read_bytes() == before


def test_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    appended(tmp_path, Event("study"))
    connection = sqlite3.connect(tmp_path / NAME)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    for use in (open_ledger, read_events):
        with pytest.raises(OutputError, match="version 99, this evomerge writes 1"):
            use(tmp_path)
    connection = sqlite3.connect(tmp_path / NAME)
    assert connection.execute("PRAGMA user_version").fetchone() == (99,)
    assert connection.execute("SELECT COUNT(*) FROM events").fetchone() == (1,)
    connection.close()


def test_refusal_releases_the_lock(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("not a database " * 100)
    with pytest.raises(OutputError, match="cannot be used"):
        open_ledger(tmp_path)
    (tmp_path / NAME).unlink()
    open_ledger(tmp_path).close()


def test_a_full_disk_is_explained_and_what_is_written_stays(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.append(Event("study", body={"text": "kept"}))
    fill_up(ledger)
    with pytest.raises(OutputError, match=r"cannot be written \(database or disk is full\).*safe"):
        ledger.append(Event("asked", 0, {"text": "x" * 100_000}))
    assert [e.kind for e in ledger.events()] == ["study"]
    ledger.close()
    assert [e.body for e in read_events(tmp_path)] == [{"text": "kept"}]


def fill_up(ledger: Ledger) -> None:
    connection: Any = ledger._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages}")


def test_no_run_in_the_directory(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds no run \(no ledger\.db\)"):
        read_events(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_no_directory_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        open_ledger(tmp_path / "file")
