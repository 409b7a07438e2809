"""Laws of `vfl ledger`: exit codes say whether two ledgers agree, and every form of a record can be read."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from protocols.cli.main import app
from protocols.record.file import Record
from tests.support.records import entry, lines, rechain, rows, says, state, write

TALK = [says(entry("bank", "shop", i, scope=f"fit/{i}", body=b"x" * i)) for i in range(4)]
ACTS = [state("running"), *TALK, says(entry("shop", "bank", kind="test.Part/1")), state("done")]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "bank.jsonl", "bank", ACTS), write(tmp_path / "shop.jsonl", "shop", ACTS)


def vfl(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


# verify


def test_ledgers_that_agree_are_exit_code_0(files: tuple[Path, Path]) -> None:
    got = vfl("ledger", "verify", *files)
    assert got.exit_code == 0, got.output
    assert got.stdout.endswith("bank and shop agree: 5 messages\n")
    row = next(line for line in got.stdout.splitlines() if "bank" in line)
    assert row.replace("│", " ").split() == ["bank", "shop", "1", "4", "0", "0"]


def test_ledgers_that_differ_are_exit_code_1_and_the_first_entry_is_named(files: tuple[Path, Path]) -> None:
    kept = rows(files[1])
    rechain(files[1], [*kept[:3], *kept[4:]])
    got = vfl("ledger", "verify", *files)
    assert got.exit_code == 1, got.output
    assert got.stdout.splitlines()[-2:] == [
        "differs: job j1: bank -> shop in 'fit/1' #1 (tests.Word/1): missing in the file of shop, "
        "though the job is done by that of shop and bank",
        "bank and shop do not agree: 4 messages do",
    ]


def test_a_broken_chain_is_exit_code_1_and_the_line_is_named(files: tuple[Path, Path]) -> None:
    whole = lines(files[0])
    files[0].write_bytes(b"".join([*whole[:5], whole[4], *whole[5:]]))
    got = vfl("ledger", "verify", *files)
    assert got.exit_code == 1, got.output
    assert f"broken: {files[0]}, line 6: what is here was inserted; entry 5 is on line 7\n" in got.stdout


def test_json_is_pure_and_has_everything(files: tuple[Path, Path]) -> None:
    files[1].write_bytes(b"".join(lines(files[1])[:3]) + b"torn")
    got = vfl("ledger", "verify", *files, "--json")
    assert got.exit_code == 1, got.output
    said = json.loads(got.stdout)
    assert (said["agree"], said["parties"], said["torn"]) == (False, ["bank", "shop"], [0, 4])
    assert [d["lines"] for d in said["differences"]] == [[4, None], [5, None], [6, None], [7, None]]
    (clash,) = said["clashes"]
    assert [clash[key] for key in ("job", "attempt", "party")] == ["j1", 0, "shop"]
    assert {line["differ"] for line in said["lines"]} == {1, 3}


def test_only_so_many_differences_are_shown(tmp_path: Path) -> None:
    a = write(tmp_path / "a", "bank", [says(entry("bank", "shop", i)) for i in range(30)])
    got = vfl("ledger", "verify", a, write(tmp_path / "b", "shop", []))
    assert got.exit_code == 1 and got.stdout.count("differs:") == 10
    assert "... and 20 more; --json has all" in got.stdout


def test_two_that_never_spoke_are_told_so(tmp_path: Path) -> None:
    got = vfl("ledger", "verify", write(tmp_path / "a", "bank", []), write(tmp_path / "b", "shop", []))
    assert got.exit_code == 0
    assert "bank and shop: neither file has a message between the two" in got.stdout


def test_what_is_no_ledger_is_exit_code_2(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,age\n1,30\n")
    cases = [
        (vfl("ledger", "verify", files[0], files[0]), "are both of bank"),
        (vfl("ledger", "verify", files[0], tmp_path / "none"), "none: No such file"),
        (vfl("ledger", "verify", files[0], tmp_path / "t.csv"), "t.csv: no ledger"),
        (vfl("ledger", "export", tmp_path / "t.csv", "--to", tmp_path / "x.csv"), "t.csv: no ledger"),
        (vfl("ledger", "export", files[0], "--to", tmp_path / "x.xlsx"), "ends in .parquet or .csv"),
        (vfl("ledger", "export", files[0], "--to", tmp_path / "no" / "x.csv"), "cannot write"),
        (vfl("ledger", "show", tmp_path / "t.csv"), "t.csv: no ledger"),
        (vfl("ledger", "show", files[0], "--by", "colour"), "cannot sum by ['colour']"),
    ]
    for got, said in cases:
        assert got.exit_code == 2, (said, got.output)
        assert said in got.stderr and got.stderr.count("\n") == 1 and not got.stdout, got.stderr


# show and export


def test_a_ledger_an_export_and_a_parquet_record_are_shown_alike(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    exported = tmp_path / "x.parquet"
    assert vfl("ledger", "export", files[0], "--to", exported).stderr == f"wrote {exported}: 8 entries\n"
    shown = [json.loads(vfl("ledger", "show", f, "--json").stdout) for f in (files[0], exported)]
    assert shown[0] == shown[1]
    assert [(row["sender"], row["messages"], row["bytes"]) for row in shown[0]] == [
        ("bank", 4, 6),
        ("shop", 1, 4),
    ]
    by_round = json.loads(vfl("ledger", "show", files[0], "--by", "party,direction", "--json").stdout)
    assert [(row["party"], row["direction"], row["bytes"]) for row in by_round][:2] == [
        ("bank", "received", 4),
        ("bank", "sent", 6),
    ]
    assert "tests.Word/1" in vfl("ledger", "show", files[0]).stdout


def test_an_export_holds_every_entry(tmp_path: Path) -> None:
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    with Record.open(tmp_path / "l", "bank") as record:
        record.grant("j1", "vertical", "person", ["ids", "embeddings"], at=at)
        record.append(entry("shop", "bank", 7, scope="fit/3"), at=at, taken=False)
        record.job("j1", "failed", attempt=1, reason="LineError", at=at)
    for name in ("x.parquet", "x.csv"):
        assert vfl("ledger", "export", tmp_path / "l", "--to", tmp_path / name).exit_code == 0
    parquet = pd.read_parquet(tmp_path / "x.parquet")
    csv = pd.read_csv(tmp_path / "x.csv")
    for table in (parquet, csv):
        assert table["entry"].tolist() == ["header", "grant", "message", "job"]
        assert table["by"][1] == "person" and table["reveals"][1] == "ids; embeddings"
        assert (table["sequence"][2], table["round"][2], bool(table["taken"][2])) == (7, 3, False)
        assert (table["state"][3], table["attempt"][3], table["reason"][3]) == ("failed", 1, "LineError")
        assert table["chain"].tolist() == [row["chain"] for row in rows(tmp_path / "l")]
    assert parquet["at"].tolist()[1:] == [at] * 3


def test_a_broken_ledger_is_exported_with_a_warning(files: tuple[Path, Path], tmp_path: Path) -> None:
    whole = lines(files[0])
    files[0].write_bytes(b"".join(whole[:2] + whole[3:]) + b"torn")
    got = vfl("ledger", "export", files[0], "--to", tmp_path / "x.csv")
    assert got.exit_code == 0
    assert "bank.jsonl, line 3: entry 2 is missing before entry 3; from there on nothing is" in got.stderr
    assert "ends in 4 bytes of a row that was not written to its end" in got.stderr


@pytest.mark.parametrize("scope", ["=1+1", "+1", "-1", "@A1", "\tx"])
def test_a_peers_words_are_no_formula_in_a_spreadsheet(tmp_path: Path, scope: str) -> None:
    write(tmp_path / "l", "bank", [says(entry("shop", "bank", scope=scope, kind="a=b"))])
    assert vfl("ledger", "export", tmp_path / "l", "--to", tmp_path / "x.csv").exit_code == 0
    row = pd.read_csv(io.StringIO((tmp_path / "x.csv").read_text())).iloc[1]
    assert (row["scope"], row["kind"]) == ("'" + scope, "a=b")


def test_a_peers_words_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    kind = "\x1b]0;title\x07\x1b[2J[red]x"
    a = write(tmp_path / "a", "bank", [says(entry("shop", "bank", kind=kind))])
    for got in (vfl("ledger", "show", a), vfl("ledger", "verify", a, write(tmp_path / "b", "shop", []))):
        assert "\\x1b]0;title\\x07\\x1b[2J[red]x" in got.stdout and "\x1b" not in got.stdout
