"""Reading a ledger file, checking its chain, and naming the first row that breaks it.

Nobody takes part: a file is read. The file alone shows whether rows were changed, dropped, inserted
or moved after they were written, by anybody who did not write all rows after them anew. An owner who did, and
a cut of the last rows, are found by holding the file against another party's (`reconcile`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from protocols.errors import DataError
from protocols.record.rows import START, HeaderRow, MessageRow, Row, follow, parse, unseal

if TYPE_CHECKING:
    import pandas as pd

What = Literal["changed", "dropped", "inserted", "moved"]
# Of an exported ledger, in order; what an entry does not have is missing.
COLUMNS = ["index", "at", "entry", "job", "attempt", "state", "reason", "method", "by", "under", "scope"]
COLUMNS += ["round", "sequence", "sender", "receiver", "kind", "bytes", "digest", "reveals", "taken", "party"]
COLUMNS += ["version", "format", "cut", "chain"]


@dataclass(frozen=True)
class Fault:
    """The first row that does not follow from the one before. `line` counts from 1, as editors do."""

    line: int
    what: What
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class Audit:
    """The rows of a ledger file, in order, as (line number, row). After iterating, the rest is known.

    owner: whose file it is, "" if its first row does not say. fault: the first row that breaks the chain, or
    None. torn: bytes of a last row that was not written to its end, and is no row. rows: how many follow from
    the first without a break. Rows after a fault are given too, as far as they can be read.

    DataError if the file cannot be read, or is no ledger.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.owner = ""
        self.fault: Fault | None = None
        self.torn = 0
        self.rows = 0

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        for number, row, _ in self.sealed():
            yield number, row

    def sealed(self) -> Iterator[tuple[int, Row, bytes]]:
        """Iterate like the audit itself, with the chain of each row added."""
        chain, readable = START, False
        for number, raw in enumerate(self._lines(), 1):
            if not raw.endswith(b"\n"):
                self.torn = len(raw)
                break
            row, content, claimed = _open(raw[:-1])
            readable |= row is not None
            if self.fault is None:
                begins = isinstance(row, HeaderRow) == (number == 1)
                if row is None or not begins or row.index != number - 1 or follow(chain, content) != claimed:
                    self.fault = _explain(list(self._lines())[number - 1 :], number, chain)
                else:
                    self.rows, chain = number, claimed
            if isinstance(row, HeaderRow) and number == 1:
                self.owner = row.party
            if row is not None:
                yield number, row, claimed
        if not readable:
            raise DataError(f"{self.path}: no ledger; expected the file that a party keeps in its store")

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                yield from file
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror or error}") from None


def owner(path: str | Path) -> str:
    """Return whose ledger the file is; "" if its first row does not say. DataError if it is no ledger."""
    for number, row in Audit(path):
        return row.party if number == 1 and isinstance(row, HeaderRow) else ""
    raise AssertionError("an Audit without rows raises")


def frame(audit: Audit) -> pd.DataFrame:
    """Return all entries of a file as one table with `COLUMNS`; `round` is the first number in the scope."""
    import pandas as pd

    records = []
    for _, row, chain in audit.sealed():
        said = row.model_dump(by_alias=True)
        if isinstance(row, MessageRow):
            numbers = (int(part) for part in row.scope.split("/") if part.isdecimal())
            said["round"] = next(numbers, None)
        if not isinstance(said.get("reveals", ""), str):
            said["reveals"] = "; ".join(said["reveals"])
        records.append({**said, "chain": chain.hex()})
    table = pd.DataFrame(records, columns=COLUMNS)
    whole = ["index", "attempt", "round", "sequence", "bytes", "format", "cut"]
    text = [c for c in COLUMNS if c not in (*whole, "at", "taken")]
    types = {**dict.fromkeys(whole, "Int64"), **dict.fromkeys(text, "string"), "taken": "boolean"}
    return table.astype(types).assign(at=pd.to_datetime(table["at"], utc=True))


def _open(raw: bytes) -> tuple[Row | None, bytes, bytes]:
    try:
        content, chain = unseal(raw)
        return parse(content), content, chain
    except ValueError:
        return None, b"", b""


def _explain(rest: list[bytes], line: int, chain: bytes) -> Fault:
    """Explain why the first of `rest`, on `line`, does not follow from `chain` as all rows before do."""
    due = line - 1  # index of the row that should be here
    here, content, claimed = _open(rest[0][:-1])
    later = [_open(raw[:-1]) for raw in rest[1:] if raw.endswith(b"\n")]
    found = here.index if here is not None else None
    begins = line == 2 and content and follow(START, content) == claimed != chain
    if begins and later and follow(claimed, later[0][1]) == later[0][2]:
        return Fault(1, "inserted", "what is here was inserted before the first entry, which is on line 2")
    for number, (_, theirs, seal) in enumerate(later, line + 1):
        if theirs and follow(chain, theirs) == seal:
            return _displaced(line, due, found, number, content, claimed, later)
    if found is None:
        return Fault(line, "changed", f"entry {due} was changed, and is none any more")
    if found == due:
        return Fault(line, "changed", f"entry {due} was changed after it was written")
    after = later[0][0].index if later and later[0][0] is not None else None
    if after == due + 1:
        return Fault(line, "changed", f"entry {due} was changed: it now says that it is entry {found}")
    if found > due:
        missing = f"entry {due} is" if found == due + 1 else f"entries {due} to {found - 1} are"
        return Fault(line, "dropped", f"{missing} missing before entry {found}")
    return Fault(line, "inserted", f"a second entry {found} was inserted after entry {due - 1}")


def _displaced(
    line: int,
    due: int,
    found: int | None,
    number: int,
    content: bytes,
    claimed: bytes,
    later: list[tuple[Row | None, bytes, bytes]],
) -> Fault:
    """Explain which row stands here while the row that is due stands further down, on line `number`."""
    copied = any(claimed == seal for _, _, seal in later)
    if content and not copied and any(seal and follow(seal, content) == claimed for _, _, seal in later):
        return Fault(
            line, "moved", f"entry {found} was moved here from further down; entry {due} is on line {number}"
        )
    return Fault(line, "inserted", f"what is here was inserted; entry {due} is on line {number}")
