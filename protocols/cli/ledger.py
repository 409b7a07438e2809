"""`vfl ledger`: reading records of messages, and holding the ledgers of two parties against each other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocols.cli.terminal import cell, console, errors, plain, say

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from protocols.record.reconcile import Verdict

app = typer.Typer(no_args_is_help=True, help="Read a record of messages; compare the ledgers of two parties.")

_SHOWN = 10  # differences in full; --json has all
Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="A party's ledger, or a Parquet file of messages.")],
    by: Annotated[
        str, typer.Option(help="Sum by: job, sender, receiver, kind, scope, round, party, direction.")
    ] = "sender,receiver,kind",
    json: Json = False,
) -> None:
    """Who told whom what: messages and bytes of a record."""
    with errors():
        from protocols.wire.ledger import summarise

        sums = summarise(_messages(file), [name.strip() for name in by.split(",")]).reset_index()
        if json:
            sys.stdout.write(sums.to_json(orient="records", indent=1) + "\n")
            return
        from rich.table import Table

        table = Table(*map(str, sums.columns), title=file.name, title_justify="left")
        for row in sums.itertuples(index=False):
            table.add_row(*(f"{value:,}" if isinstance(value, int) else cell(value) for value in row))
        console().print(table)


@app.command("verify")
def verify(
    a: Annotated[Path, typer.Argument(help="One party's ledger.")],
    b: Annotated[Path, typer.Argument(help="Another's.")],
    json: Json = False,
) -> None:
    """Whether two parties recorded the same. Exit code: 0 they agree, 1 they differ, 2 bad input."""
    with errors():
        from protocols.record.reconcile import verify as held_against

        verdict = held_against(a, b)
        if json:
            import json as encoder

            sys.stdout.write(encoder.dumps(verdict.asdict(), indent=1) + "\n")
        else:
            _print(verdict, (a, b))
        if not verdict.agree:
            raise typer.Exit(1)


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(help="A party's ledger.")],
    to: Annotated[Path, typer.Option(help="The file to write; it ends in .parquet or .csv.")],
) -> None:
    """Every entry of a ledger as a row of a table, for auditors."""
    with errors():
        from protocols.errors import ConfigError
        from protocols.files import write_out

        if to.suffix not in (".parquet", ".csv"):
            raise ConfigError(f"cannot write {to}: expected a name that ends in .parquet or .csv")
        table = _entries(file)
        write_out(to, table.to_parquet(index=False) if to.suffix == ".parquet" else _csv(table))
        say(f"wrote {to}: {len(table)} entries")


def _entries(file: Path) -> pd.DataFrame:
    """All entries of a party's ledger; with a warning where its chain is broken."""
    from protocols.record.audit import Audit, frame

    audit = Audit(file)
    table = frame(audit)
    if audit.fault is not None:
        say(f"warning: {file}, {audit.fault}; from there on nothing is vouched for")
    if audit.torn:
        say(f"warning: {file} ends in {audit.torn} bytes of a row that was not written to its end")
    return table


def _messages(file: Path) -> pd.DataFrame:
    """The messages of a record of either form."""
    import pandas as pd

    from protocols.errors import DataError
    from protocols.wire.ledger import COLUMNS

    if file.is_dir():
        records = sorted(one.name for one in file.glob("*.parquet"))
        hint = f"name one of its files, as in {file / records[0]}" if records else "it holds no record"
        raise DataError(f"{file}: a folder of {len(records)} records; {hint}")
    try:
        with file.open("rb") as opened:
            is_parquet = opened.read(4) == b"PAR1"
        table = pd.read_parquet(file) if is_parquet else _entries(file)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: cannot be read ({type(error).__name__})") from None
    if {*COLUMNS} - {"depth", "chain"} - {*table.columns}:
        raise DataError(f"{file}: not a record of messages; write one with vfl compare --ledger DIR")
    if "entry" in table.columns:
        table = table[table["entry"] == "message"]
    return table


def _csv(table: pd.DataFrame) -> str:
    """A peer chooses scopes and kinds: what a spreadsheet would run as a formula gets an apostrophe."""
    for name in map(str, table.select_dtypes("string").columns):
        column = table[name]
        runs = column.str.match(r"[=+\-@\t\r]").fillna(False)
        table = table.assign(**{name: column.mask(runs, "'" + column)})
    return table.to_csv(index=False)


def _print(verdict: Verdict, files: tuple[Path, Path]) -> None:
    out = console()
    if verdict.lines:
        out.print(_sums(verdict))
    said = []
    for file, fault, torn in zip(files, verdict.faults, verdict.torn, strict=True):
        if fault is not None:
            said.append(f"broken: {file}, {fault}")
        if torn:
            said.append(f"torn: {file} ends in {torn} bytes of a row that was not written to its end")
    differing = [f"differs: {found}" for found in (*verdict.clashes, *verdict.differences)]
    said += differing[:_SHOWN]
    if differing[_SHOWN:]:
        said.append(f"... and {len(differing) - _SHOWN:,} more; --json has all")
    for line in (*said, _conclusion(verdict)):
        out.print(plain(line), markup=False, highlight=False, soft_wrap=True)


def _sums(verdict: Verdict) -> Table:
    from rich.table import Table

    table = Table("from", "to", "jobs", "agree", "in flight", "differ")
    for ends in sorted({(v.sender, v.receiver) for v in verdict.lines}):
        lines = [v for v in verdict.lines if (v.sender, v.receiver) == ends]
        sums = (sum(v.agree for v in lines), sum(v.in_flight for v in lines), sum(v.differ for v in lines))
        table.add_row(*ends, f"{len({v.job for v in lines}):,}", *(f"{n:,}" for n in sums))
    return table


def _conclusion(verdict: Verdict) -> str:
    if "" in verdict.parties:
        return "not compared: the first row of a file, which says whose it is, is broken"
    pair = " and ".join(verdict.parties)
    if not verdict.lines:
        return f"{pair}: neither file has a message between the two"
    agree = sum(line.agree for line in verdict.lines)
    flying = f", {len(verdict.in_flight):,} were in flight" if verdict.in_flight else ""
    if verdict.agree:
        return f"{pair} agree: {agree:,} messages{flying}"
    return f"{pair} do not agree: {agree:,} messages do{flying}"
