"""`vfl certs`: the files of a federation on one laptop, and the commands that start it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from protocols.cli.terminal import errors

app = typer.Typer()


@app.command("certs")
def certs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write into.")],
    parties: Annotated[
        list[str] | None, typer.Argument(metavar="PARTY", help="Names of the parties.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where all parties listen.")] = "localhost",
    port: Annotated[int, typer.Option(help="The first port to try; free ones are taken.")] = 7001,
    dial_only: Annotated[
        list[str] | None, typer.Option(help="A party that listens nowhere, and only dials.")
    ] = None,
    days: Annotated[float, typer.Option(help="How long the certificates hold.")] = 90.0,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over files that are there, the authority too.")
    ] = False,
    renew: Annotated[
        str | None, typer.Option(metavar="PARTY", help="Only give this party a new key and certificate.")
    ] = None,
) -> None:
    """Make a trial federation: an authority, certificates, the book, a configuration for each party."""
    with errors():
        from protocols.errors import ConfigError

        if renew is not None:
            if parties or replace or dial_only:
                raise ConfigError(
                    "--renew is about one party that is there; it goes with DIR and --days only"
                )
            _renew(directory, renew, days)
        elif not parties:
            raise ConfigError(f"name the parties, as in: vfl certs {directory} bank telco shop")
        else:
            from protocols.service.trial import new_trial

            dialling = dial_only or ()
            trial = new_trial(
                directory, parties, host=host, port=port, dial_only=dialling, days=days, replace=replace
            )
            _introduce(directory, parties, [shlex.quote(str(trial.config(party))) for party in parties])


def _introduce(directory: Path, parties: list[str], configs: list[str]) -> None:
    typer.echo(f"wrote {directory}: {', '.join(parties)}")
    typer.echo(
        f"\nPut each party's table where its file says, as in {directory / parties[0]}.csv. Then start"
    )
    typer.echo("the federation, with a terminal for each party:\n")
    for config in configs:
        typer.echo(f"  vfl serve {config}")
    typer.echo(
        "\nbut not for the one that calls: it connects from Python, or with `vfl psi --book`, and does not\n"
        "serve meanwhile."
    )
    typer.echo(
        f"\nFor trials only: whoever has {directory / 'authority.key'} can issue a certificate in any\n"
        "party's name, and so be any of them. Between organisations each makes its own key, and an\n"
        "authority that all trust certifies it: see docs/guides/certificates.md."
    )


def _renew(directory: Path, party: str, days: float) -> None:
    from protocols.service.trial import renew

    before = renew(directory, party, days=days)
    typer.echo(
        f"wrote {directory / party}.pem and .key; a running {party} takes them up at its next handshake"
    )
    typer.echo("To refuse the certificate before, which is still valid, add its fingerprint to `revoked` in")
    typer.echo(f"every party's parties.toml:\n\n  {before}")
