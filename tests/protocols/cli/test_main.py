"""Laws of the command: exit codes mean something, errors are one line, scripts get pure JSON."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from protocols.cli import main
from protocols.cli.main import app
from protocols.compare import run as module
from protocols.compare.choose import Choice
from protocols.compare.report import read_measures
from protocols.compare.run import discover
from protocols.compare.task import Method, Outcome, Task
from protocols.errors import StallError
from protocols.learning.training import Settings
from tests.support import tiny
from tests.support.waiting import HANG

RUN = "from protocols.cli.main import main; main()"
PARTIES = "bank=a,b,c telco=*"
SHORT = Settings(epochs=2)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "loans.csv"
    tiny.table().drop(columns="amount").to_csv(path, index=False)
    return path


@pytest.fixture(autouse=True)
def untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choosing settings has its own tests; here two epochs of a tiny network do."""

    def choose(task: Task, seed: int, *, quick: bool, on_progress: object) -> Choice:
        settings = replace(task.settings, epochs=2)
        return Choice(replace(task, settings=settings, hidden=(8, 4)), (), 0, 0)

    monkeypatch.setattr(module, "choose", choose)


def vfl(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def compare(table: Path, *more: str | Path, target: str = "default", parties: str = PARTIES) -> Result:
    common: list[str | Path] = ["--data", table, "--id", "id", "--target", target, "--parties", parties]
    return vfl("compare", *common, "--seeds", "1", "--clients", "2", *more)


def test_json_on_standard_output_is_pure(table: Path) -> None:
    got = compare(table, "--json", "-")
    assert got.exit_code == 0, got.output
    frame = read_measures(got.stdout)
    assert set(frame["method"]) == {m.name for m in discover(tiny.task())}
    assert json.loads(got.stdout)["constants"]["seeds"].startswith("0;")


def test_files_are_written_where_asked(table: Path, tmp_path: Path) -> None:
    page, numbers, ledgers = tmp_path / "out.html", tmp_path / "out.json", tmp_path / "ledgers"
    methods = ["--methods", "centralised,alone: bank"]
    got = compare(table, *methods, "--json", numbers, "--html", page, "--ledger", ledgers)
    assert got.exit_code == 0, got.output
    assert "centralised" in got.stdout
    assert "alone: bank" in page.read_text("utf-8")
    frame = read_measures(numbers.read_text("utf-8"))
    assert set(frame["method"]) == {"centralised", "alone: bank"}
    assert sorted(f.name for f in ledgers.iterdir()) == [
        f"{method}.seed0.{phase}.parquet"
        for method in ("alone-bank", "centralised")
        for phase in ("predict", "train")
    ]
    record = ledgers / "centralised.seed0.train.parquet"
    shown = vfl("ledger", "show", record, "--by", "sender,kind", "--json")
    rows = json.loads(shown.stdout)
    sent = frame[(frame["measure"] == "bytes") & (frame["phase"] == "train")]["value"].sum()
    assert sum(row["bytes"] for row in rows) == sent
    assert {row["sender"] for row in rows} == {"client0", "client1"}
    assert all("in the clear" in row["reveals"] for row in rows)
    assert "protocols.Rows/1" in vfl("ledger", "show", record).stdout


def test_the_kind_can_be_said(table: Path) -> None:
    got = compare(table, "--kind", "regression", "--methods", "centralised", "--json", "-")
    assert got.exit_code == 0, got.output
    assert "regression, scored by r2" in json.loads(got.stdout)["constants"]["target"]
    assert compare(table, "--kind", "ranking").exit_code == 2


def test_methods_lists_each_with_one_line() -> None:
    got = vfl("methods")
    assert got.exit_code == 0
    for name in module.registered():
        assert name in got.stdout


def bad(path: Path, frame: pd.DataFrame) -> Path:
    frame.to_csv(path, index=False)
    return path


def test_each_bad_input_is_one_line_and_exit_code_2(table: Path, tmp_path: Path) -> None:
    frame, place = pd.read_csv(table), tmp_path / "bad.csv"
    cases = [
        (compare(table, "--id", "nr"), "no id column 'nr'"),
        (compare(table, target="defualt"), "no target column"),
        (compare(table, parties="bank=a,b,c,a telco=d,e"), "named twice"),
        (compare(table, parties="bank=a,b telco=d"), "no party holds"),
        (compare(table, "--label-party", "shop"), "no party 'shop'"),
        (compare(table, "--methods", "fedavgg"), "no method 'fedavgg'"),
        (compare(table, "--methods", ","), "methods: none given"),
        (compare(table, "--methods", ""), "methods: none given"),
        (compare(tmp_path / "absent.csv"), "no such file"),
        (compare(table, "--html", tmp_path / "nowhere" / "x.html"), "there is no directory"),
        (compare(bad(place, frame.assign(id="same"))), "80 of 80 ids are duplicated"),
        (compare(bad(place, frame.assign(a=None))), "bank: column 'a'"),
        (compare(bad(place, frame.assign(a="text"))), "bank: column 'a' is"),
        (compare(bad(place, frame.assign(default=1))), "1 class"),
        (compare(bad(place, frame.iloc[:0])), "0 rows"),
        (vfl("ledger", "show", table), "no ledger; expected the file that a party keeps"),
        (vfl("ledger", "show", tmp_path / "absent.parquet"), "no such file"),
        (vfl("ledger", "show", tmp_path), "a folder of 0 records"),
    ]
    for got, said in cases:
        assert got.exit_code == 2, (said, got.output)
        assert said in got.stderr and got.stderr.count("\n") == 1, got.stderr
        assert not got.stdout


def test_an_output_that_cannot_be_written_is_refused_before_any_run(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "compare", None)
    for option, place, said in [
        ("--ledger", table, "is no directory"),
        ("--html", tmp_path, "is a directory"),
        ("--json", tmp_path, "is a directory"),
        ("--ledger", tmp_path / "nowhere" / "ledgers", "there is no directory"),
    ]:
        got = compare(table, option, place)
        assert (got.exit_code, got.stderr.count("\n")) == (2, 1), got.output
        assert f"cannot write {place}: " in got.stderr and said in got.stderr
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)
    for option in ("--html", "--json", "--ledger"):
        got = compare(table, option, tmp_path / "new")
        assert got.exit_code == 2, got.output
        assert f"no permission to write in {tmp_path}" in got.stderr


@pytest.mark.parametrize("arguments", [["--clients", "0"], ["--seeds", "0"], ["--no-such-option"], ["extra"]])
def test_usage_errors_are_exit_code_2(arguments: list[str]) -> None:
    assert vfl("compare", *arguments).exit_code == 2


def test_a_run_that_fails_is_exit_code_1_and_names_party_and_scope(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(task: Task, seed: int) -> Outcome:
        raise StallError("no role can go on").at("shop", "align")

    monkeypatch.setattr(
        module, "discover", lambda task, names: [Method("stuck", "vertical", "none", "none", run)]
    )
    page = tmp_path / "page.html"
    got = compare(table, "--html", page)
    assert (got.exit_code, got.stderr) == (1, "error: shop/align: no role can go on (in stuck, seed 0)\n")
    assert not page.exists()


def test_a_method_with_nothing_for_the_task_is_never_passed_over_in_silence(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`split` needs a hidden layer to cut at."""
    monkeypatch.setattr(
        module, "choose", lambda task, *a, **k: Choice(replace(task, hidden=(), settings=SHORT), (), 0, 0)
    )
    asked = compare(table, "--methods", "split,centralised")
    assert (asked.exit_code, asked.stdout) == (2, "")
    assert asked.stderr == "error: method 'split' has nothing for this task\n"
    everything = compare(table, "--json", "-")
    assert everything.exit_code == 0, everything.output
    assert "Method 'split' has nothing for this task and was not run." in everything.stdout


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "protocols.cli.main", "--help"], capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout


def test_ctrl_c_outside_a_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "_add_commands", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "stopped\n"


PACKAGE = """
import typer
app = typer.Typer(help="Of another package.")
@app.command()
def wave() -> None:
    print("waved")
@app.command()
def sink() -> None:
    print("sunk")
"""


def test_another_package_adds_commands_and_a_broken_one_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "another_package.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    named = {"other": "another_package:app", "methods": "another_package:app", "text": "another_package:PACK"}
    named |= {"gone": "no_such_package:app", "help": "another_package:wave"}
    found = [EntryPoint(name, value, main.GROUP) for name, value in named.items()]
    monkeypatch.setattr(main, "entry_points", lambda group: found if group == main.GROUP else [])
    monkeypatch.setattr(app, "registered_groups", list(app.registered_groups))
    monkeypatch.setattr(sys, "argv", ["vfl", "other", "wave"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (0, "waved\n")
    said = err.splitlines()
    assert len(said) == 4 and all(line.startswith("warning: command '") for line in said), err
    for name, reason in [
        ("methods", "the name is taken"),
        ("text", "AttributeError"),
        ("gone", "ModuleNotFoundError"),
        ("help", "not a typer.Typer"),
    ]:
        assert any(f"'{name}'" in line and "is skipped" in line and reason in line for line in said), err


def test_help_answers_without_loading_torch() -> None:
    code = (
        "import sys; sys.argv = ['vfl', '--help']\ntry:\n    {}\nfinally:\n    print('torch' in sys.modules)"
    )
    lines = code.format(RUN)
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout and done.stdout.endswith("False\n")


def test_ctrl_c_in_the_middle_leaves_no_report(table: Path, tmp_path: Path) -> None:
    """The signal comes when the first record has been written: runs are under way, the report is not."""
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["compare", "--data", table, "--id", "id", "--target", "default", "--parties", PARTIES]
    arguments += ["--seeds", "500", "--methods", "alone: bank", "--ledger", out / "ledgers"]
    arguments += ["--html", out / "page.html", "--json", out / "numbers.json"]
    watch = (
        "import os, signal, protocols.compare.run as c\n"
        "run = c._run\n"
        "def interrupted(method, task, seed):\n"
        "    if seed == 2:\n"
        "        print('under way', flush=True)\n"
        "    return run(method, task, seed)\n"
        "c._run = interrupted\n"
        "from protocols.compare.choose import Choice\n"
        "c.choose = lambda task, *a, **k: Choice(task, (), 0, 0)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", watch + RUN, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert isinstance(process.stdout, io.TextIOBase)
        assert process.stdout.readline() == "under way\n"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=HANG)
    finally:
        process.kill()
    assert (process.returncode, stdout, stderr) == (130, "", "stopped; no report was written\n")
    assert [f.name for f in out.iterdir()] == ["ledgers"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--html", "x.html"), ("--ledger", "x"), ("--parties", "a=*"), ("--label-party", "a")],
)
def test_what_a_comparison_over_the_network_would_leave_undone_is_refused(option: str, value: str) -> None:
    result = vfl("compare", "--book", "parties.toml", "--me", "bank", option, value)
    assert result.exit_code == 2 and f"error: {option}: not with --book" in result.output


def test_an_output_that_cannot_be_written_is_refused_before_the_network_is_asked(tmp_path: Path) -> None:
    result = vfl("compare", "--book", "parties.toml", "--me", "bank", "--json", tmp_path / "no" / "x.json")
    assert result.exit_code == 2 and "error: cannot write" in result.output
