"""The command `vfl`: the comparison, and the commands of `protocols.cli` and of other packages.

No line is involved: it reads options, runs, writes what was measured. Exit codes are those of
`protocols.cli.terminal`. torch and pandas are imported where they are needed, so that `vfl --help`
answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.main import get_command

from protocols.cli import certs, ledger, serve
from protocols.cli.terminal import console, errors, say

GROUP = "vfl.commands"

if TYPE_CHECKING:
    from protocols.compare.report import Comparison
    from protocols.compare.run import OnOutcome
    from protocols.compare.task import Method, Outcome, Task

app = typer.Typer(
    name="vfl",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Horizontal, vertical and split learning, side by side on one table.",
)
app.add_typer(certs.app)
app.add_typer(ledger.app, name="ledger")
app.add_typer(serve.app)
app.add_typer(serve.parts_app, name="parts")


def main() -> None:
    """Entry point of the command `vfl`."""
    try:
        _add_commands()
        app()
    except KeyboardInterrupt:
        say("stopped")
        sys.exit(130)


def _add_commands() -> None:
    """The sub-commands of other packages; a broken one, or one of a name that is taken, gives a warning."""
    taken = {*get_command(app).commands}  # type: ignore[attr-defined]
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        try:
            if entry.name in taken:
                raise ValueError("the name is taken")
            found = entry.load()
            if not isinstance(found, typer.Typer):
                raise TypeError(f"{type(found).__name__} is not a typer.Typer")
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            say(f"warning: command {entry.name!r} of {entry.value} is skipped: {said}")
            continue
        taken.add(entry.name)
        app.add_typer(found, name=entry.name)


@app.command("compare")
def compare(
    data: Annotated[
        str, typer.Option(help="breast_cancer, digits, or a .csv or .parquet file.")
    ] = "breast_cancer",
    id: Annotated[str | None, typer.Option(help="The id column. Default: the row number.")] = None,
    target: Annotated[str | None, typer.Option(help="The target: COLUMN or PARTY.COLUMN.")] = None,
    parties: Annotated[
        str | None, typer.Option(help='Who holds which columns: "bank=AGE,INCOME shop=*".')
    ] = None,
    label_party: Annotated[
        str | None, typer.Option(help="Who holds the target. Default: the first party listed.")
    ] = None,
    kind: Annotated[
        Literal["classification", "regression"] | None,
        typer.Option(help="What the target asks for. Default: as its values look."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Which methods, by comma; see `vfl methods`. Default: all.")
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Row-clients of horizontal and split learning.")] = 5,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Paired seeds. Default: 5, or 2 with --quick.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="2 seeds and fewer epochs; ranges for intervals.")
    ] = False,
    json: Annotated[
        str | None, typer.Option(help="Write tidy JSON to this file; - for standard output.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page to this file.")] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Write every record of messages to this directory.")
    ] = None,
    book: Annotated[
        Path | None,
        typer.Option(help="parties.toml: compare over the network what its parties' layout admits."),
    ] = None,
    me: Annotated[
        str | None, typer.Option(help="With --book: which party this is; --data is its table.")
    ] = None,
) -> None:
    """Train one task in every way, and show what each gives, costs and gives away."""
    with errors(stopped="stopped; no report was written"):
        if book is not None or me is not None:
            unused = {"--html": html, "--ledger": ledger, "--parties": parties, "--label-party": label_party}
            _refuse([name for name, value in unused.items() if value is not None])
            _writable([None if json in (None, "-") else Path(str(json))], None)
            _over_network(book, me, data, id, target, kind, methods, seeds, quick, json)
            return
        _writable([html, None if json in (None, "-") else Path(str(json))], ledger)
        from protocols.compare import datasets as tables

        task = tables.load(
            data,
            id=id,
            target=target,
            parties=parties,
            label_party=label_party,
            clients=clients,
            kind=kind,
        )
        names = [name.strip() for name in methods.split(",") if name.strip()] if methods is not None else None
        result = _compare(task, names, seeds, quick, ledger)
        _show(result, json, html)


@app.command("methods")
def list_methods() -> None:
    """List the registered methods."""
    with errors():
        from rich.table import Table

        from protocols.compare.run import load, registered

        table = Table("name", "what it is", "from", box=None, pad_edge=False)
        for name, entry in registered().items():
            offer = load(entry)
            if offer is not None:
                said = (offer.__doc__ or "").strip().partition("\n")[0]
                table.add_row(name, said, entry.module)
        console().print(table)


def _compare(
    task: Task, names: list[str] | None, seeds: int | None, quick: bool, ledger: Path | None
) -> Comparison:
    import torch

    from protocols.compare.run import compare as run
    from protocols.progress import bar

    torch.set_num_threads(1)  # more threads are slower on batches this small, and sum in another order
    with bar("compare") as on_progress:
        return run(
            task, names, seeds=seeds, quick=quick, on_progress=on_progress, on_outcome=_exporter(ledger)
        )


def _over_network(
    book: Path | None,
    me: str | None,
    data: str,
    id: str | None,
    target: str | None,
    kind: Literal["classification", "regression"] | None,
    methods: str | None,
    seeds: int | None,
    quick: bool,
    json: str | None,
) -> None:
    import torch

    from protocols.compare.datasets import kind_of, read
    from protocols.compare.over_network import compare_parties
    from protocols.data.tables import column
    from protocols.errors import ConfigError
    from protocols.federation import Federation
    from protocols.files import write_out
    from protocols.learning.training import Settings
    from protocols.progress import bar

    if book is None or me is None or id is None or target is None:
        raise ConfigError("over the network, --book, --me, --data, --id and --target are all needed")
    torch.set_num_threads(1)
    names = [name.strip() for name in methods.split(",") if name.strip()] if methods is not None else None
    table, wanted = read(data), target.removeprefix(f"{me}.")
    settings = Settings(kind or kind_of(column(table, wanted, "target")), epochs=5 if quick else 10)
    with Federation.connect(book, me, table) as parties, bar("compare") as on_progress:
        found = compare_parties(
            parties,
            target=wanted,
            id=id,
            settings=settings,
            methods=names,
            seeds=seeds or 2,
            on_progress=on_progress,
        )
    if json is not None:
        text = found.frame.to_json(orient="records", indent=1) + "\n"
        if json == "-":
            sys.stdout.write(text)
            return
        write_out(json, text)
    console().print(found.renderable())


def _exporter(directory: Path | None) -> OnOutcome | None:
    if directory is None:
        return None

    def export(method: Method, seed: int, outcome: Outcome) -> None:
        import re

        from protocols.files import write_out

        directory.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^a-z0-9]+", "-", method.name.lower()).strip("-")
        for phase, record in (("train", outcome.ledger), ("predict", outcome.predict_ledger)):
            content = record.frame().to_parquet(index=False)
            write_out(directory / f"{stem}.seed{seed}.{phase}.parquet", content)

    return export


def _show(result: Comparison, json: str | None, html: Path | None) -> None:
    from protocols.files import write_out

    report = result.report
    if json == "-":
        sys.stdout.write(report.to_json())
    else:
        console().print(report.renderable())
    if json not in (None, "-"):
        write_out(str(json), report.to_json())
    if html is not None:
        report.to_html(html)
        say(f"wrote {html}")


def _refuse(options: Sequence[str]) -> None:
    """Refuse what a comparison over the network would leave undone."""
    from protocols.errors import ConfigError

    if options:
        raise ConfigError(
            f"{', '.join(options)}: not with --book; over the network the parties are those of the book, "
            "each keeps its own ledger, and the result is a table or --json"
        )


def _writable(files: Sequence[Path | None], directory: Path | None) -> None:
    """Refuse an output before the long work rather than after it."""
    from protocols.errors import ConfigError

    for place in (*files, directory):
        if place is None:
            continue
        if place is not directory and place.is_dir():
            raise ConfigError(f"cannot write {place}: it is a directory, give the name of a file")
        if place is directory and place.exists() and not place.is_dir():
            raise ConfigError(f"cannot write {place}: it is no directory")
        within = place.absolute() if place.is_dir() else place.absolute().parent
        if not within.is_dir():
            raise ConfigError(f"cannot write {place}: there is no directory {within}")
        if not os.access(within, os.W_OK | os.X_OK):
            raise ConfigError(f"cannot write {place}: no permission to write in {within}")


if __name__ == "__main__":
    main()
