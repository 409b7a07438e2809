"""`vfl psi`: the common rows of tables in files, here or over the network.

Who takes part and who learns what: see `vfl.align`. It is a command of that package,
and loads it when it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from protocols.cli.terminal import console, errors, say

if TYPE_CHECKING:
    import pandas as pd

    from vfl.alignment.roles import AlignmentReport

app = typer.Typer(no_args_is_help=True, invoke_without_command=True)


@app.callback()
def psi(
    context: typer.Context,
    tables: Annotated[
        list[str] | None,
        typer.Option("--table", help="PARTY=FILE, .csv or .parquet; once for each party, all of them here."),
    ] = None,
    book: Annotated[
        Path | None, typer.Option(help="parties.toml: over the network, with parties that run `vfl serve`.")
    ] = None,
    me: Annotated[
        str | None, typer.Option(help="With --book: which party this is; --table is its own.")
    ] = None,
    id: Annotated[
        list[str] | None,
        typer.Option(help="The id column, or PARTY=COLUMN; several by comma make an id together."),
    ] = None,
    label_party: Annotated[
        str | None, typer.Option(help="Who compares, and learns first. Default: the first table, or --me.")
    ] = None,
    parties: Annotated[
        str | None, typer.Option(help="With --book: who takes part, by comma. Default: all of the book.")
    ] = None,
    reveal: Annotated[
        Literal["all", "label-party", "size"], typer.Option(help="Who learns which ids are common.")
    ] = "all",
    protocol: Annotated[
        Literal["auto", "ecdh", "kkrt", "unbalanced"],
        typer.Option(help="By which two parties compare their ids; who serves has to allow all but ecdh."),
    ] = "auto",
    cache: Annotated[
        Path | None,
        typer.Option(help="For unbalanced, without --book: a folder in which the parties keep their stores."),
    ] = None,
    duplicates: Annotated[
        Literal["error", "first", "many"], typer.Option(help="What a repeated id means.")
    ] = "error",
    normalise: Annotated[
        str, typer.Option(help="Any of strip,casefold,digits, by comma: done to all ids first.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="Where aligned tables go: a folder, or with --book a .csv or .parquet file."),
    ] = None,
    format: Annotated[
        Literal["parquet", "csv"], typer.Option(help="Of the files in the folder --out.")
    ] = "parquet",
) -> None:
    """Find the rows that all parties have, by private set intersection, in one common order."""
    if context.invoked_subcommand is not None:
        return
    with errors():
        from protocols.errors import ConfigError

        rules = tuple(rule.strip() for rule in normalise.split(",") if rule.strip())
        how: dict[str, Any] = {"reveal": reveal, "protocol": protocol, "cache": cache}
        how |= {"duplicates": duplicates, "normalise": rules}
        if (book is None) != (me is None):
            raise ConfigError("over the network, --book and --me are both needed")
        if book is not None and me is not None:
            _over_network(book, me, tables or [], id or [], label_party, parties, how, out)
        else:
            _here(tables or [], id or [], label_party, how, out, format)


@app.command("export")
def export_command(
    run: Annotated[str, typer.Argument(help="The run, as `vfl parts list` names it.")],
    out: Annotated[Path, typer.Option(help="A .csv or .parquet file.")],
    config: Annotated[Path, typer.Option(help="The party's own file.")] = Path("party.toml"),
    table: Annotated[str | None, typer.Option(help="Which of its tables, if it has several.")] = None,
) -> None:
    """Write the common rows of a party that served an alignment."""
    with errors():
        from protocols.cli.arguments import check_out
        from protocols.data.reorder import write_rows
        from protocols.data.sources import parquet_columns, read_table
        from protocols.errors import ConfigError
        from protocols.parts import load_part
        from protocols.psi.id_columns import id_column
        from protocols.service.config import read_config
        from protocols.service.store import Store
        from vfl.alignment.program import export, exported

        check_out(out)
        settings, _ = read_config(config)
        names = list(settings.tables)
        name = table or (names[0] if len(names) == 1 else "")
        if name not in settings.tables:
            raise ConfigError(f"--table should be one of {', '.join(names) or 'none: it has no tables'}")
        part, source = load_part(Store(settings.store).parts, run), settings.tables[name]
        if source.path is not None and {source.path.suffix.lower(), out.suffix} == {".parquet"}:
            column = id_column(source, settings.base)
            rows = exported(part, column)
            columns = parquet_columns(source, settings.base)
            write_rows(settings.base / source.path, rows, out, columns=columns)
            say(f"wrote {len(rows)} rows to {out}")
        else:
            _write(export(part, read_table(source, settings.base, None)), out)


@app.command("forget")
def forget_command(
    peer: Annotated[str, typer.Argument(help="The other party.")],
    config: Annotated[Path, typer.Option(help="The party's own file.")] = Path("party.toml"),
) -> None:
    """Delete what is kept for the next unbalanced comparison with a peer; that one begins afresh."""
    with errors():
        from protocols.errors import ConfigError
        from protocols.psi.epochs import forget
        from protocols.service.config import read_config

        store = read_config(config)[0].store
        if not forget(store, peer):
            raise ConfigError(f"nothing is kept in {store} of comparisons with {peer!r}")
        say(f"deleted what was kept of comparisons with {peer}")


def _here(
    given: list[str],
    ids: list[str],
    label_party: str | None,
    how: Mapping[str, Any],
    out: Path | None,
    format: str,
) -> None:
    from protocols.cli.arguments import check_folder, id_columns, pairs
    from protocols.errors import ConfigError
    from vfl.alignment import align

    files = pairs(given, "--table", "PARTY=FILE")
    if len(files) < 2:
        raise ConfigError("give --table PARTY=FILE once for each of two parties or more, or --book and --me")
    named = id_columns(ids, list(files))
    if out is not None:
        if out.exists() and not out.is_dir():
            raise ConfigError(f"--out {out} is a file; all parties' tables go to a folder")
        if how["reveal"] == "size":
            raise ConfigError("with --reveal size nobody learns which rows are common; leave --out out")
        check_folder(out, out.absolute())
    tables = {party: _read(party, Path(file), named[party]) for party, file in files.items()}
    found = align(tables, id=named, label_party=label_party or next(iter(files)), **how)
    _show(found.report)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {out} cannot be made: {error.strerror}") from None
        for party, table in found.tables.items():
            _write(table, out / f"{party}.{format}")


def _over_network(
    book: Path,
    me: str,
    given: list[str],
    ids: list[str],
    label_party: str | None,
    parties: str | None,
    how: Mapping[str, Any],
    out: Path | None,
) -> None:
    from protocols.cli.arguments import check_out, columns
    from protocols.errors import ConfigError
    from protocols.federation import Federation
    from vfl.alignment import align
    from vfl.alignment.roles import learns_rows

    if len(given) != 1 or len(ids) != 1:
        raise ConfigError("over the network, give one --table FILE and one --id COLUMN: this party's own")
    if how["cache"] is not None:
        raise ConfigError("over the network each party keeps its cache in its own store; leave --cache out")
    how = {name: value for name, value in how.items() if name != "cache"}
    if out is not None:
        check_out(out)
        if not learns_rows(me, label_party or me, how["reveal"]):  # before the others are shown anything
            raise ConfigError(
                f"with --reveal {how['reveal']} {me} does not learn the rows, so it cannot write them to "
                f"{out}; leave --out out"
            )
    names = [name.strip() for name in parties.split(",")] if parties else None
    if names is not None and me not in names:
        raise ConfigError(f"--parties {parties}: {me}, which --me says this is, should be one of them")
    file, id = Path(given[0].removeprefix(f"{me}=")), columns(ids[0].removeprefix(f"{me}="))
    if file.suffix.lower() == ".parquet" and (out is None or out.suffix == ".parquet"):
        return _by_file(book, me, file, id, label_party or me, names, how, out)
    with Federation.connect(book, me, _read(me, file, id)) as all_:
        found = align(all_, id=id, label_party=label_party or me, parties=names, **how)
    _told(found.report, found.run, _others(me, names or all_.parties, label_party or me, how))
    if out is not None:
        _write(found.tables[me], out)


def _by_file(
    book: Path,
    me: str,
    file: Path,
    id: list[str],
    label_party: str,
    parties: list[str] | None,
    how: Mapping[str, Any],
    out: Path | None,
) -> None:
    """Of a table that is never in memory as a whole: its ids are read first, and all of it when its common
    rows are written."""
    from protocols.data.reorder import write_rows
    from protocols.errors import marked
    from protocols.federation import Federation
    from protocols.parts import load_part
    from protocols.psi.id_columns import InFile
    from vfl.alignment.program import align_ids, exported

    with marked(me, "align"):
        column = InFile(file, id)
    with Federation.connect(book, me) as all_:
        told, _, run = align_ids(all_, parties or all_.parties, column, label_party, how)
        _told(told, run.job, _others(me, parties or all_.parties, label_party, how))
        if out is None:
            return
        part = load_part(all_.store.parts, run.job)
    with marked(me, "align"):
        rows = exported(part, InFile(file, id))  # read anew: a run takes long enough for a file to change
    write_rows(file, rows, out)
    say(f"wrote {len(rows)} rows to {out}")


def _others(me: str, parties: Sequence[str], label_party: str, how: Mapping[str, Any]) -> list[str]:
    """Who else learns the common rows."""
    from vfl.alignment.roles import learns_rows

    return [party for party in parties if party != me and learns_rows(party, label_party, how["reveal"])]


def _told(report: AlignmentReport, run: str, others: Sequence[str]) -> None:
    _show(report)
    names = " and ".join(others)
    can = f": {names} can write the common rows too, with `vfl psi export {run}`" if names else ""
    say(f"run {run}{can}")


def _read(party: str, file: Path, ids: Sequence[str]) -> pd.DataFrame:
    from protocols.data.sources import read_file
    from protocols.errors import marked

    with marked(party, "align"):
        return read_file(file, ids)


def _write(table: pd.DataFrame, out: Path) -> None:
    from protocols.files import write_out

    content = table.to_csv(index=False) if out.suffix == ".csv" else table.to_parquet(index=False)
    write_out(out, content)
    say(f"wrote {len(table)} rows to {out}")


def _show(report: AlignmentReport) -> None:
    import pandas as pd
    from rich.table import Table

    shown = Table("party", *report.counts.columns)
    for party, row in report.counts.iterrows():
        shown.add_row(str(party), *("" if pd.isna(value) else str(value) for value in row))
    console().print(shown)
    for words in (*report.learnt.values(), *(f"{p}: {risk}" for p, risk in report.risks.items())):
        typer.echo(words)
