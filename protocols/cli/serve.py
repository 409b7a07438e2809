"""`vfl serve` and what an operator asks or tells a party that serves: jobs, approve, cancel, parts, status.

All but `serve` work on the party's store alone, so they also work while it is down.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocols.cli.terminal import cell, console, errors, plain, say

if TYPE_CHECKING:
    from protocols.service.store import Record, Store

app = typer.Typer()
parts_app = typer.Typer(no_args_is_help=True, help="The parts of models that a party keeps.")

Config = Annotated[Path, typer.Option("--config", "-c", help="The party's own file, as in telco.toml.")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
CONFIG = Path("party.toml")


@app.command("serve")
def serve(config: Annotated[Path, typer.Argument(help="The party's own file, as in telco.toml.")]) -> None:
    """Serve one party's tables: take part in the jobs that its policy, or a person, lets through."""
    with errors("stopped"):
        import asyncio

        import torch

        from protocols.logs import structured
        from protocols.network.door import raise_limit
        from protocols.programs import import_all
        from protocols.service.agent import serve_party
        from protocols.service.config import read_config
        from protocols.service.stopping import until_told

        raise_limit()
        found, book = read_config(config)
        torch.set_num_threads(1)  # the same bits at every party, and the machine is shared
        import_all()
        with structured(found.log):
            asyncio.run(until_told(serve_party(found, book)))


@app.command("jobs")
def jobs(config: Config = CONFIG, json: Json = False) -> None:
    """The jobs that a party took part in, or was asked to."""
    with errors():
        records = _store(config).all()
        if json:
            _json([record.model_dump(mode="json", exclude={"table_digest"}) for record in records])
            return
        from rich.table import Column, Table

        table = Table(
            Column("job", no_wrap=True),
            "attempt",
            "state",
            "caller",
            "method",
            "action",
            "table",
            Column("granted by", no_wrap=True),
            "updated",
            "reason",
        )
        for r in records:
            when = f"{r.updated.astimezone():%Y-%m-%d %H:%M:%S}"
            said = (
                r.job,
                str(r.attempt),
                r.state,
                r.caller,
                r.program,
                r.action,
                r.table,
                _granted(r),
                when,
                r.reason,
            )
            table.add_row(*map(cell, said))
        console().print(table)


def _granted(record: Record) -> str:
    """By whom, and how many attempts that has covered."""
    if record.given is None:
        return record.granted
    so_far = f", {record.given.attempts} attempts so far" if record.given.attempts > 1 else ""
    return f"person at attempt {record.given.attempt}{so_far}"


@app.command("approve")
def approve(
    job: Annotated[str, typer.Argument(help="The job, as `vfl jobs` lists it.")],
    config: Config = CONFIG,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Consent to a job that waits for it, after showing what will leave."""
    with errors():
        from protocols.errors import ConfigError
        from protocols.programs import program
        from protocols.service.config import read_config
        from protocols.service.consent import reveals
        from protocols.service.store import Store

        found, _ = read_config(config)
        store = Store(found.store)
        record = store.find(job)
        if record is None:
            raise ConfigError(f"no job {job!r} in {store.folder}; `vfl jobs` lists them")
        if record.state != "proposed" or record.granted:
            raise ConfigError(f"job {job} waits for nobody: it is {record.state}")
        table = record.table or ", ".join(found.tables)  # not named where there is one
        typer.echo(
            plain(
                f"{record.caller} asks to {record.action} {record.program} "
                f"{f'on table {table} ' if table else ''}with {', '.join(record.parties)}; parameters:"
            )
        )
        # As the role will read them, what the caller left out too.
        parameters = program(record.program).read(record.parameters).model_dump(mode="json")
        for name, value in parameters.items():
            typer.echo(plain(f"  {name} = {value}"))
        typer.echo("\nWhat its messages reveal, each to the party that receives it:")
        for line in reveals(program(record.program), record.action):
            typer.echo(f"  - {line}")
        typer.echo(f"\nThis is attempt {record.attempt}, of which {_ran(record)}.")
        typer.echo(
            "Your consent is for one beginning of the job, and for going on with the same rows after a cut."
        )
        if not yes and not typer.confirm("\nLet it run?"):
            raise typer.Exit(1)
        store.say("approve", job, record)
        say(f"approved {job}")


def _ran(record: Record) -> str:
    if not record.ran:
        return "none ran before"
    return f"attempt {record.ran} ran: this one may compare other ids of its caller's"


@app.command("cancel")
def cancel(
    job: Annotated[str, typer.Argument(help="The job, as `vfl jobs` lists it.")], config: Config = CONFIG
) -> None:
    """Give up a job at this party; its caller is told."""
    with errors():
        _store(config).say("cancel", job)
        say(f"cancelling {job}")


@app.command("status")
def status(config: Config = CONFIG, json: Json = False) -> None:
    """Whether the party serves, and how it is with its peers. Exit code 1 where it does not serve."""
    with errors():
        from protocols.service.health import read_status

        found = read_status(_store(config))
        if json:
            _json(found)
        else:
            _print_status(found)
        if not found["running"] or found["why"]:
            raise typer.Exit(1)


def _print_status(found: dict[str, Any]) -> None:
    from rich.table import Table

    state = "not running" if not found["running"] else "not serving" if found["why"] else "running"
    typer.echo(f"{found['party']}: {state}, version {found['version']}, last seen {found['seen']}")
    if found["why"]:
        typer.echo(plain(found["why"]))
    if not found["running"]:
        return
    table = Table("peer", "connected", "version", "latency, ms", "last heard, s", "why not")
    for name, peer in found["peers"].items():
        numbers = (peer["latency_ms"], peer["heard_s"])
        shown = ["" if number is None else f"{number:.1f}" for number in numbers]
        said = (name, "yes" if peer["connected"] else "no", peer["version"], *shown, peer["cause"])
        table.add_row(*map(cell, said))
    console().print(table)


@parts_app.command("list")
def list_command(config: Config = CONFIG, json: Json = False) -> None:
    """The parts that the party keeps: run, method, when, and the size in bytes."""
    with errors():
        from protocols.parts import list_parts, load_part

        store, rows = _store(config), []
        for run in list_parts(store.parts):
            part = load_part(store.parts, run)
            size = sum(file.stat().st_size for file in (store.parts / run).iterdir())
            rows.append(
                {"run": run, "method": part.method, "created": part.created.isoformat(), "bytes": size}
            )
        if json:
            _json(rows)
            return
        from rich.table import Table

        table = Table("run", "method", "created", "bytes")
        for row in rows:
            table.add_row(*map(cell, row.values()))
        console().print(table)


@parts_app.command("delete")
def delete(
    run: Annotated[str | None, typer.Argument(help="The run, as `vfl parts list` names it.")] = None,
    expired: Annotated[
        bool, typer.Option("--expired", help="All that are older than retention_days.")
    ] = False,
    config: Config = CONFIG,
) -> None:
    """Delete a part, or all that are expired with the records of their jobs. Predicting with it ends."""
    with errors():
        from protocols.errors import ConfigError
        from protocols.parts import delete_part, list_parts, load_part
        from protocols.service.config import read_config

        if (run is None) != expired:
            raise ConfigError("name a run, or say --expired")
        store = _store(config)
        if run is not None:
            delete_part(store.parts, run)
            say(f"deleted {run}")
            return
        days = read_config(config)[0].retention_days
        if days is None:
            raise ConfigError(f"{config} sets no retention_days, so nothing expires")
        limit = datetime.now(UTC) - timedelta(days=days)
        old = [name for name in list_parts(store.parts) if load_part(store.parts, name).created < limit]
        for name in old:
            delete_part(store.parts, name)
        gone = store.expire(limit)
        say(f"deleted {len(old)} parts and the records of {gone} jobs older than {days} days")


def _store(config: Path) -> Store:
    from protocols.service.config import read_config
    from protocols.service.store import Store

    return Store(read_config(config)[0].store)


def _json(value: Any) -> None:
    import json

    sys.stdout.write(json.dumps(value, indent=1) + "\n")
