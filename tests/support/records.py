"""What the tests of ledgers on disk share: entries, files of them, and files rewritten by their owner."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from hypothesis import strategies as st

from protocols.record.file import Record, Sent
from protocols.wire.message import Message


class Entry(NamedTuple):
    """A ledger's entry, as far as a file keeps it."""

    job: str
    scope: str
    sequence: int
    sender: str
    receiver: str
    kind: str
    nbytes: int
    digest: bytes


class Word(Message, reveals="test: nothing"):
    text: str


def entry(
    sender: str,
    receiver: str,
    sequence: int = 0,
    *,
    scope: str = "fit",
    job: str = "j1",
    kind: str = Word.kind,
    body: bytes = b"body",
) -> Entry:
    digest = hashlib.sha256(body).digest()
    return Entry(job, scope, sequence, sender, receiver, kind, len(body), digest)


Act = Callable[[Record], None]
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


def says(said: Sent, **more: Any) -> Act:
    return lambda record: record.append(said, **more)


def state(said: Any, job: str = "j1", attempt: int = 0, reason: str = "") -> Act:
    return lambda record: record.job(job, said, attempt=attempt, reason=reason)


@st.composite
def acts(draw: st.DrawFn) -> Act:
    """One row of any sort, in the ledger of the bank."""
    sort = draw(st.sampled_from(("sent", "received", "grant", "job")))
    job, text = draw(TEXT), draw(TEXT)
    if sort == "grant":
        return lambda record: record.grant(job, text, "person", [text, text])
    if sort == "job":
        return state(draw(st.sampled_from(("running", "done", "failed"))), job, draw(st.integers(0, 2)))
    ends = ("bank", "shop") if sort == "sent" else ("shop", "bank")
    number = draw(st.integers(0, 2**53 - 1))
    said = entry(*ends, number, scope=text, job=job, kind=draw(TEXT), body=draw(st.binary(max_size=4)))
    return says(said, taken=draw(st.booleans()))


def scratch() -> TemporaryDirectory[str]:
    """A folder in memory where there is one: flushing to a disk takes longer than all else in these tests."""
    memory = Path("/dev/shm")
    return TemporaryDirectory(dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None)


def write(path: Path, party: str, what: Iterable[Act]) -> Path:
    with Record.open(path, party) as record:
        for act in what:
            act(record)
    return path


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(path)]


def rechain(path: Path, kept: Iterable[dict[str, Any]]) -> Path:
    """What an owner can do: write a file anew, so that its own chain is whole.

    Written after docs/guides/ledger.md, and not with the code under test.
    """
    chain, out = bytes(32), b""
    for index, row in enumerate(kept):
        said = {**row, "index": index}
        del said["chain"]
        content = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
        chain = hashlib.sha256(chain + content).digest()
        out += content[:-1] + f',"chain":"{chain.hex()}"}}\n'.encode()
    path.write_bytes(out)
    return path
