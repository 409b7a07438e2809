"""The rows of a ledger on disk: what each may say, and how each is chained to the one before.

A row is one JSON object on one line of the file. Its last member is `chain`, 64 hexadecimal digits: SHA-256
over the chain of the row before (32 bytes; zeros before the first row) and the row's own bytes without that
member and its comma. So a reader needs no canonical JSON: it cuts the last 76 bytes off, puts the brace back,
and hashes. docs/guides/ledger.md is this format for readers in other languages.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

START = bytes(32)  # the chain before the first row
BEGINNING = b'{"index":'  # of every row, as it is written
By = Literal["policy", "person", "resumed"]
State = Literal["proposed", "refused", "agreed", "running", "done", "failed", "cancelled"]
# Why a job of predictions is done at its caller, and may not be at the others.
CUT = "a line was cut before all others had ended"
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]  # what every JSON reader holds exactly

_SEALED = re.compile(rb'(?s)(.*),"chain":"([0-9a-f]{64})"\}')


class _Row(BaseModel):
    """The fields of every row. `at` is this party's clock, and informs only: nothing is ordered by it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    index: Count  # 0 for the first row, then one more for each
    at: AwareDatetime


class HeaderRow(_Row):
    """The first row: whose file this is, since when, written by which release."""

    entry: Literal["header"] = "header"
    format: Literal[1] = 1
    party: str
    version: str


class MessageRow(_Row):
    """One message, at either end of its line. `taken`: whether the receiver's role took it, or it came too
    late for the role and was discarded; a sender does not know, and writes true."""

    entry: Literal["message"] = "message"
    job: str
    scope: str
    sequence: Count
    sender: str
    receiver: str
    kind: str
    nbytes: Count = Field(alias="bytes")  # of the encoded message
    digest: Sha256  # of the encoded message
    reveals: str  # what a curious receiver learns; "" where the kind is not known here
    taken: bool = True


class GrantRow(_Row):
    """A consent: to which job, which method, given by the policy or by a person, or resumed, and then `under`
    which consent of a person; and what it lets leave."""

    entry: Literal["grant"] = "grant"
    job: str
    method: str
    by: By
    under: str = ""
    reveals: tuple[str, ...]


class JobRow(_Row):
    """A job's new state. `attempt` counts how often the job was taken up again, as its parties agreed: what
    was said in one attempt is compared with that attempt at the peer."""

    entry: Literal["job"] = "job"
    job: str
    state: State
    attempt: Count = 0
    reason: str = ""  # made of counts, types and kinds, as what crosses of an error is


class MendedRow(_Row):
    """A crash had left a torn last row, of `cut` bytes, which is no longer there."""

    entry: Literal["mended"] = "mended"
    cut: Count


Row = HeaderRow | MessageRow | GrantRow | JobRow | MendedRow
_ROW: TypeAdapter[Row] = TypeAdapter(Annotated[Row, Field(discriminator="entry")])


def seal(before: bytes, row: Row) -> tuple[bytes, bytes]:
    """Return `row` as it is written, with its newline, and its chain. before: the chain of the row before."""
    content = row.model_dump_json(by_alias=True).encode()
    chain = follow(before, content)
    return b'%b,"chain":"%b"}\n' % (content[:-1], chain.hex().encode()), chain


def follow(before: bytes, content: bytes) -> bytes:
    """Compute the chain of a row of these bytes that follows a row with the chain `before`."""
    return hashlib.sha256(before + content).digest()


def unseal(raw: bytes) -> tuple[bytes, bytes]:
    """Split a row of the file (without newline) into content and chain; ValueError if it has no chain."""
    found = _SEALED.fullmatch(raw)
    if found is None:
        raise ValueError("no chain")
    return found[1] + b"}", bytes.fromhex(found[2].decode())


def parse(content: bytes) -> Row:
    """Read the row in these bytes; raise ValueError if there is none."""
    return _ROW.validate_json(content)
