"""Whoever touches a row of a ledger file is found out, and the row is named."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.record.audit import Audit, Fault, frame, owner
from protocols.record.file import Record
from tests.support import ROOT
from tests.support.records import Act, acts, entry, lines, rows, says, scratch, write
from tests.support.waiting import HANG

AT = datetime(2026, 3, 1, 12, 30, 0, 250000, tzinfo=UTC)


def fault(path: Path) -> Fault | None:
    audit = Audit(path)
    list(audit)
    return audit.fault


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "l", "bank", [says(entry("bank", "shop", i)) for i in range(6)])


@given(st.lists(acts(), min_size=1, max_size=8), st.data())
def test_any_single_change_is_found_and_named(what: list[Act], data: st.DataObject) -> None:
    """One byte of one row, or a row exchanged for another of the same place."""
    with scratch() as folder:
        path = write(Path(folder) / "l", "bank", what)
        whole = lines(path)
        k = data.draw(st.integers(0, len(whole) - 1))
        at = data.draw(st.integers(0, len(whole[k]) - 2))
        byte = data.draw(st.integers(0, 255).filter(lambda b: b not in (whole[k][at], ord("\n"))))
        path.write_bytes(
            b"".join([*whole[:k], whole[k][:at] + bytes([byte]) + whole[k][at + 1 :], *whole[k + 1 :]])
        )
        found = fault(path)
        assert found is not None and found.line == k + 1
        if k < len(whole) - 1:  # of the last row, what became of its index cannot be told
            assert found.what == "changed"


@given(st.lists(acts(), min_size=2, max_size=8), st.data())
def test_any_drop_is_found_and_named(what: list[Act], data: st.DataObject) -> None:
    """But for the last rows, which only another party's file can tell of."""
    with scratch() as folder:
        path = write(Path(folder) / "l", "bank", what)
        whole = lines(path)
        k = data.draw(st.integers(0, len(whole) - 2))
        n = data.draw(st.integers(1, len(whole) - 1 - k))
        path.write_bytes(b"".join(whole[:k] + whole[k + n :]))
        found = fault(path)
        assert found is not None and (found.line, found.what) == (k + 1, "dropped")
        assert f"{k} to {k + n - 1}" in found.reason if n > 1 else f"entry {k} is missing" in found.reason


@given(st.lists(acts(), min_size=2, max_size=8), st.data())
def test_any_insertion_is_found_and_named(what: list[Act], data: st.DataObject) -> None:
    """A copy of another row, a row of another ledger, or text."""
    with scratch() as folder:
        path = write(Path(folder) / "l", "bank", what)
        whole = lines(path)
        foreign = lines(write(Path(folder) / "m", "bank", what))
        k = data.draw(st.integers(0, len(whole)))
        new = data.draw(st.sampled_from([*whole, *foreign, b"{}\n", b"\n"]))
        path.write_bytes(b"".join([*whole[:k], new, *whole[k:]]))
        line = k + 1
        if k < len(whole) and new == whole[k]:
            line += 1  # of two alike, the second is too many
        found = fault(path)
        assert found is not None and found.line == line
        if line <= len(whole):
            assert found.what == "inserted"


@given(st.lists(acts(), min_size=2, max_size=8), st.data())
def test_any_two_rows_that_changed_places_are_found_and_named(what: list[Act], data: st.DataObject) -> None:
    with scratch() as folder:
        path = write(Path(folder) / "l", "bank", what)
        whole = lines(path)
        i = data.draw(st.integers(0, len(whole) - 2))
        j = data.draw(st.integers(i + 1, len(whole) - 1))
        whole[i], whole[j] = whole[j], whole[i]
        path.write_bytes(b"".join(whole))
        found = fault(path)
        assert found is not None and (found.line, found.what) == (i + 1, "moved")
        assert f"entry {j} was moved" in found.reason and f"entry {i} is on line {j + 1}" in found.reason


def test_of_two_first_rows_the_one_that_the_rest_follows_is_right(file: Path, tmp_path: Path) -> None:
    other = lines(write(tmp_path / "m", "shop", []))
    whole = lines(file)
    file.write_bytes(b"".join([*other, *whole]))
    found = fault(file)
    assert found is not None and (found.line, found.what) == (1, "inserted")
    file.write_bytes(b"".join([whole[0], *other, *whole[1:]]))
    found = fault(file)
    assert found is not None and (found.line, found.what) == (2, "inserted")


def test_a_file_says_whose_it_is(file: Path) -> None:
    assert owner(file) == "bank"
    file.write_bytes(b"".join(lines(file)[1:]))
    assert owner(file) == ""


def test_rows_after_a_fault_are_still_read(file: Path) -> None:
    whole = lines(file)
    file.write_bytes(b"".join([*whole[:3], b"no row\n", *whole[4:]]))
    audit = Audit(file)
    assert [number for number, _ in audit] == [1, 2, 3, 5, 6, 7] and audit.rows == 3
    assert str(audit.fault) == "line 4: entry 3 was changed, and is none any more"


def test_a_row_knows_no_other_members(file: Path) -> None:
    """Even one whose chain is right: what a reader does not know, it must not pass over."""
    whole = lines(file)
    before = bytes.fromhex(json.loads(whole[-1])["chain"])
    content = whole[-1][:-77].replace(b'"index":6', b'"index":7') + b',"payload":"x"}'
    chain = hashlib.sha256(before + content).hexdigest().encode()
    file.write_bytes(b"".join(whole) + content[:-1] + b',"chain":"' + chain + b'"}\n')
    assert fault(file) == Fault(8, "changed", "entry 7 was changed, and is none any more")


def test_the_program_of_the_guide_checks_a_file(file: Path) -> None:
    guide = ROOT / "docs" / "guides" / "ledger.md"
    (program,) = re.findall(r"```python\n(.*?)```", guide.read_text("utf-8"), flags=re.DOTALL)

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, str(file)], capture_output=True, text=True, timeout=HANG
        )
        return done.stdout + done.stderr

    assert run() == "7 rows follow from one another\n"
    whole = lines(file)
    file.write_bytes(b"".join(whole[:4] + whole[5:]))
    assert run() == "line 5 does not follow from the one before\n"


def test_a_file_as_a_table(tmp_path: Path) -> None:
    path = tmp_path / "l"
    with Record.open(path, "bank") as record:
        record.grant("j1", "vertical", "policy", ["ids", "embeddings"], at=AT)
        record.append(entry("bank", "shop", 2, scope="fit/7/x"), at=AT)
    table = frame(Audit(path))
    assert table["entry"].tolist() == ["header", "grant", "message"]
    assert table["reveals"].tolist()[1:] == ["ids; embeddings", "test: nothing"]
    assert table["round"].tolist()[2] == 7 and table["bytes"].sum() == 4
    assert table["at"].tolist()[2] == AT and table["chain"].tolist() == [r["chain"] for r in rows(path)]
