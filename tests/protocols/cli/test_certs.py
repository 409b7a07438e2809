"""`vfl certs` says how to start what it made, and what it is not for."""

from __future__ import annotations

import shlex
from pathlib import Path

from typer.testing import CliRunner, Result

from protocols.cli.main import app
from protocols.service.certificates import fingerprint


def vfl(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["certs", *map(str, arguments)])


def test_it_prints_the_commands_that_start_the_federation(tmp_path: Path) -> None:
    folder = tmp_path / "our trial"
    got = vfl(folder, "bank", "telco", "shop", "--dial-only", "shop", "--port", "7101")
    assert got.exit_code == 0, got.output
    commands = [shlex.split(line) for line in got.stdout.splitlines() if line.startswith("  vfl ")]
    assert commands == [
        ["vfl", "serve", str(folder / f"{party}.toml")] for party in ("bank", "telco", "shop")
    ]
    assert all(Path(command[2]).is_file() for command in commands)
    assert 'shop = ""' in (folder / "parties.toml").read_text()
    assert "whoever has " in got.stdout and "authority.key" in got.stdout and "For trials only" in got.stdout


def test_a_renewed_certificate_comes_with_the_fingerprint_of_the_old(tmp_path: Path) -> None:
    vfl(tmp_path, "bank", "telco")
    before = fingerprint(tmp_path / "telco.pem")
    got = vfl(tmp_path, "--renew", "telco")
    assert got.exit_code == 0, got.output
    assert got.stdout.splitlines()[-1].strip() == before
    assert fingerprint(tmp_path / "telco.pem") != before


def test_each_bad_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    vfl(tmp_path, "bank", "telco")
    cases = [
        (vfl(tmp_path), "name the parties, as in: vfl certs"),
        (vfl(tmp_path, "bank", "telco"), "already; choose another folder"),
        (vfl(tmp_path, "bank", "--renew", "telco"), "--renew is about one party that is there"),
        (vfl(tmp_path, "--renew", "telco", "--replace"), "--renew is about one party that is there"),
        (vfl(tmp_path, "--renew", "telc"), "did you mean 'telco'?"),
        (vfl(tmp_path / "new", "bank", "a.b"), "cannot name a party"),
    ]
    for got, said in cases:
        assert got.exit_code == 2, (said, got.output)
        assert said in got.stderr and got.stderr.count("\n") == 1 and not got.stdout, got.stderr
