"""A ledger file holds what happened, and survives crashes and full disks."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError, DataError
from protocols.federation import simulate
from protocols.party import Coordinator
from protocols.record.audit import Audit
from protocols.record.file import Record
from protocols.record.rows import GrantRow, HeaderRow, JobRow, MendedRow, MessageRow, Row
from protocols.wire.message import Message
from tests.support.records import Act, acts, entry, lines, rows, says, scratch, state, write
from tests.support.waiting import HANG

AT = datetime(2026, 3, 1, 12, 30, 0, 250000, tzinfo=UTC)


def read(path: Path) -> list[Row]:
    """All rows of a file that is whole."""
    audit = Audit(path)
    found = [row for _, row in audit]
    assert audit.fault is None and audit.torn == 0 and audit.rows == len(found)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(
        tmp_path / "ledger.jsonl",
        "bank",
        [says(entry("bank", "shop", i, body=bytes(i))) for i in range(6)],
    )


# What is written.


def test_a_file_holds_each_sort_of_row(tmp_path: Path) -> None:
    path = tmp_path / "store" / "ledger.jsonl"
    sent = entry("bank", "shop", 3, scope="fit/é 7", body=b"x" * 10)
    with Record.open(path, "bank") as record:
        record.job("j1", "proposed", at=AT)
        record.grant("j1", "vertical", "person", ["blinded ids", "embeddings"], at=AT)
        record.append(sent, at=AT)
        record.append(entry("shop", "bank"), at=AT, taken=False)
        record.job("j1", "failed", attempt=2, reason="LineError", at=AT)
        head = record.head
    header, proposed, grant, message, late, failed = read(path)
    assert isinstance(header, HeaderRow) and header.party == "bank" and header.index == 0
    assert proposed == JobRow(index=1, at=AT, job="j1", state="proposed")
    said = ("blinded ids", "embeddings")
    assert grant == GrantRow(index=2, at=AT, job="j1", method="vertical", by="person", reveals=said)
    assert isinstance(message, MessageRow) and message.taken and message.at == AT
    held = {name: value for name, value in message.model_dump().items() if name in sent._fields}
    assert held == {**sent._asdict(), "digest": sent.digest.hex()}
    assert message.reveals == "test: nothing"
    assert isinstance(late, MessageRow) and not late.taken
    assert failed == JobRow(index=5, at=AT, job="j1", state="failed", attempt=2, reason="LineError")
    assert rows(path)[-1]["chain"] == head
    assert path.stat().st_mode & 0o777 == 0o600


@given(st.lists(acts(), max_size=12), st.integers(0, 12))
def test_a_file_that_is_opened_again_goes_on_where_it_was(what: list[Act], cut: int) -> None:
    with scratch() as folder:
        path = write(Path(folder) / "l", "bank", what[:cut])
        before = path.read_bytes()
        write(path, "bank", what[cut:])
        assert path.read_bytes().startswith(before)
        assert [row.index for row in read(path)] == list(range(len(what) + 1))


def test_a_reader_needs_sha256_and_json_only(file: Path) -> None:
    """The chain by the words of docs/guides/ledger.md."""
    before = bytes(32)
    for line in lines(file):
        row, content = json.loads(line), line[:-77] + b"}"
        before = hashlib.sha256(before + content).digest()
        assert row["chain"] == before.hex()
        assert json.loads(content) == {name: value for name, value in row.items() if name != "chain"}


def test_rows_longer_than_a_block_are_continued(tmp_path: Path) -> None:
    path = tmp_path / "l"
    for _ in range(3):
        write(path, "bank", [says(entry("bank", "shop", scope="s" * 10_000))])
    assert len(read(path)) == 4


class Secret(Message, reveals="test: a secret"):
    text: str


def test_no_payload_is_in_it(tmp_path: Path) -> None:
    canary = "canary-7f3a9c51"

    async def bank(me: Coordinator) -> None:
        await me.send("shop", Secret(text=canary))

    async def shop(me: Coordinator) -> None:
        await me.recv("bank", Secret)

    ledger = simulate({"bank": bank, "shop": shop}).ledger
    path = write(tmp_path / "l", "bank", [says(e) for e in ledger.entries])
    held, raw = path.read_bytes(), canary.encode()
    assert ledger.entries[0].digest.hex().encode() in held
    assert not any(form in held for form in (raw, raw.hex().encode(), base64.b64encode(raw)))


# Who may write.


def test_a_party_records_only_its_own_messages(tmp_path: Path) -> None:
    with (
        Record.open(tmp_path / "l", "bank") as record,
        pytest.raises(ConfigError, match=r"bank/ledger: a message from shop to telco is not this party's"),
    ):
        record.append(entry("shop", "telco"))


def test_one_file_belongs_to_one_party_and_one_process(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"is the ledger of bank; give each party its own"):
        Record.open(file, "shop")
    with Record.open(file, "bank"), pytest.raises(ConfigError, match=r"held by another process.*run twice"):
        Record.open(file, "bank")
    Record.open(file, "bank").close()


@pytest.mark.parametrize("content", [b"id,age\n1,30\n", b"\x00\x01\x02", b"{}\n", b'{"index":0}\n', b"word"])
def test_a_file_that_is_no_ledger_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "l"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is no ledger"):
        Record.open(path, "bank")
    assert path.read_bytes() == content


def test_a_broken_end_is_not_continued(file: Path) -> None:
    whole = lines(file)
    file.write_bytes(b"".join(whole[:-2] + whole[-1:]))
    with pytest.raises(DataError, match=r"does not follow from the one before; `vfl ledger verify` names"):
        Record.open(file, "bank")


def test_a_closed_record_takes_nothing(file: Path) -> None:
    record = Record.open(file, "bank")
    record.close()
    record.close()
    with pytest.raises(ConfigError, match="is closed"):
        record.append(entry("bank", "shop"))


# Crashes and disks.


@given(st.lists(acts(), min_size=1, max_size=4), st.data())
def test_a_torn_last_row_is_cut_off_and_everything_before_is_intact(
    what: list[Act], data: st.DataObject
) -> None:
    with scratch() as folder:
        path = write(Path(folder) / "l", "bank", what)
        whole = lines(path)
        left = data.draw(st.integers(1, len(whole[-1]) - 1))
        path.write_bytes(b"".join(whole[:-1]) + whole[-1][:left])
        torn = Audit(path)
        assert len(list(torn)) == len(whole) - 1 and torn.fault is None and torn.torn == left
        write(path, "bank", [state("running")])
        assert lines(path)[:-2] == whole[:-1]
        mended = read(path)[-2]
        assert isinstance(mended, MendedRow) and mended.cut == left


@pytest.mark.parametrize("left", [b"", b'{"ind', b"\0" * 40])
def test_a_crash_in_the_very_first_row_begins_anew(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "l"
    path.write_bytes(left)
    write(path, "bank", [])
    assert [type(row) for row in read(path)] == ([HeaderRow, MendedRow] if left else [HeaderRow])


CRASH = """
import itertools, sys
from protocols.record.file import Record
from tests.support.records import entry
record = Record.open(sys.argv[1], "bank")
for i in itertools.count():
    record.append(entry("bank", "shop", i))
    if i == 200:
        print("under way", flush=True)
"""


def test_a_killed_process_loses_no_row_that_it_had_recorded(tmp_path: Path) -> None:
    path = tmp_path / "l"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", CRASH, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    with process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "under way\n"
        finally:
            process.send_signal(signal.SIGKILL)
    write(path, "bank", [])
    said = [row.sequence for row in read(path) if isinstance(row, MessageRow)]
    assert said == list(range(len(said))) and len(said) > 200


def test_a_disk_that_fills_in_the_middle_of_a_row_leaves_none_of_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, written = file.read_bytes(), os.write
    record = Record.open(file, "bank")

    def full(handle: int, raw: bytes) -> int:
        if len(raw) < 300:
            raise OSError(28, "No space left on device")
        return written(handle, raw[:100])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DataError, match=r"bank/ledger: the ledger .* No space left.* What it held is intact"):
        record.append(entry("bank", "shop", 6))
    assert file.read_bytes() == before
    monkeypatch.undo()
    record.append(entry("bank", "shop", 6))
    record.close()
    assert len(read(file)) == 8


def test_a_flush_that_fails_closes_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record.open(file, "bank")

    def fails(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(DataError, match="Input/output error"):
        record.job("j1", "done")
    with pytest.raises(ConfigError, match="is closed"):
        record.append(entry("bank", "shop"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    command = [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=HANG)


def test_a_full_disk_is_an_error_and_the_file_stays_readable(small_disk: Path) -> None:
    path = small_disk / "ledger.jsonl"
    with Record.open(path, "bank") as record:

        def fill() -> None:
            for i in range(1000):
                record.append(entry("bank", "shop", i))

        with pytest.raises(DataError, match=r"No space left on device"):
            fill()
        with pytest.raises(DataError, match=r"No space left on device"):
            record.job("j1", "failed", reason="x" * 400)
    held = read(path)
    assert len(held) > 50
    with Record.open(path, "bank") as record, pytest.raises(DataError, match=r"No space left"):
        record.append(entry("bank", "shop"))
    assert read(path) == held


def test_a_read_only_disk_is_an_error(small_disk: Path) -> None:
    path = write(small_disk / "ledger.jsonl", "bank", [state("running")])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=HANG)
    with pytest.raises(DataError, match=r"bank/ledger: the ledger .* Read-only file system"):
        Record.open(path, "bank")
    assert len(read(path)) == 2
