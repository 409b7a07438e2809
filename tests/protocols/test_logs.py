"""Nothing reaches a log but what is on its lists, wherever a canary is put."""

from __future__ import annotations

import io
import json
import logging
import stat
import sys
import threading
import warnings
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import errors, logs
from protocols.errors import ConfigError, DataError, PartyError, PolicyError, VflError
from protocols.logs import EVENTS, FIELDS, WITHHELD, log, structured

CANARY = "k4n4ry-c3ll"
EMPTY: dict[str, int] = {}
FORMS = [CANARY, CANARY.encode().hex(), b64encode(CANARY.encode()).decode()]


def logged(
    action: Callable[[], object], capture: pytest.CaptureFixture[str], level: str = "debug"
) -> list[dict[str, Any]]:
    """The lines that `action` logs; none of them holds the canary in any form."""
    with structured(level):
        action()
    written = capture.readouterr()
    assert written.out == "" and not any(form in written.err for form in FORMS)
    return [json.loads(line) for line in written.err.splitlines()]


def test_a_line_is_an_event_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"job": "job-7", "peer": "bank", "method": "vertical-net", "rows": 300, "seconds": 0.5}
    (line,) = logged(lambda: log.info("job agreed", extra=fields), capsys)
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "info", "logger": "vfl", "event": "job agreed", **fields}


def test_below_the_level_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert logged(lambda: log.info("serving"), capsys, level="warning") == []


def broken(error: BaseException) -> BaseException:
    """`error`, raised from one that quotes a cell, with a local variable and a note that do."""
    secret = CANARY

    def fail() -> None:
        try:
            EMPTY[secret]
        except KeyError as cause:
            error.add_note(secret)
            raise error from cause

    with pytest.raises(type(error)) as raised:
        fail()
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        KeyError(CANARY),
        ValueError(f"could not convert string to float: '{CANARY}'"),
        OSError(2, "No such file", CANARY),
        UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY),
        PartyError(f"ValueError: {CANARY}").at("bank", "fit/3"),
        ExceptionGroup(CANARY, [ValueError(CANARY)]),
        KeyboardInterrupt(CANARY),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_others_is_its_type_and_place(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = logged(lambda: log.error("job failed", exc_info=broken(error)), capsys)
    assert line["error"] == type(error).__name__ and line["causes"][0] == "KeyError"
    assert "reason" not in line and line["at"][-1].startswith("test_logs.py:")
    if isinstance(error, PartyError):
        assert (line["party"], line["scope"]) == ("bank", "fit/3")


@pytest.mark.parametrize("kind", [DataError, PolicyError, ConfigError])
def test_an_error_of_ours_gives_its_reason(kind: type[VflError], capsys: pytest.CaptureFixture[str]) -> None:
    error = broken(kind("3 of 9 ids are missing").at("telco", "job-7/psi"))
    (line,) = logged(lambda: log.error("job failed", exc_info=error), capsys)
    assert {name: line[name] for name in ("error", "party", "scope", "reason", "causes")} == {
        "error": kind.__name__,
        "party": "telco",
        "scope": "job-7/psi",
        "reason": "3 of 9 ids are missing",
        "causes": ["KeyError"],
    }
    assert line["at"][-1].startswith("test_logs.py:") and line["at"][-1].endswith(" fail")


def test_every_kind_of_error_can_be_described(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, VflError)]

    def all_of_them() -> None:
        for kind in kinds:
            log.error("job failed", exc_info=broken(kind("why")))

    lines = logged(all_of_them, capsys)
    assert [line["error"] for line in lines] == [kind.__name__ for kind in kinds]
    assert [line["error"] for line in lines if "reason" not in line] == ["PartyError"]


def test_what_a_peer_can_cause_without_end_does_not_fill_the_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "A_SECOND", 0.0)

    def flood() -> None:
        for _ in range(5_000):
            log.warning("line refused", extra={"peer": "mill"})
        log.warning("line refused", extra={"peer": "bank"})
        log.warning("peer lost", extra={"peer": "mill"})
        logs.A_SECOND = 1e9
        log.warning("line refused", extra={"peer": "mill"})

    *many, bank, lost, last = logged(flood, capsys)
    assert len(many) == logs.BURST
    assert (bank["peer"], lost["event"], last["left_out"]) == ("bank", "peer lost", 5_000 - logs.BURST)
    assert not [line for line in (*many, bank, lost) if "left_out" in line]


def test_an_endless_chain_of_causes_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = ValueError("a"), KeyError("b")
    one.__context__, two.__context__ = two, one
    (line,) = logged(lambda: log.error("job failed", exc_info=one), capsys)
    assert len(line["causes"]) == 8


@pytest.mark.parametrize(
    "action",
    [
        lambda: log.info(f"job {CANARY} agreed"),
        lambda: log.info("job agreed %s", CANARY),
        lambda: log.info("job agreed", CANARY),
        lambda: log.info(CANARY),
        lambda: log.info({"a": CANARY}),
        lambda: log.info("job agreed", extra={"cell": CANARY}),
        lambda: log.info("job agreed", extra={"rows": CANARY}),
        lambda: log.info("job agreed", extra={"action": CANARY}),
        lambda: log.info("job agreed", extra={"kind": [CANARY]}),
        lambda: log.info("job agreed", stack_info=True),
        lambda: logging.getLogger("asyncio").error("Task failed: %r", ValueError(CANARY)),
        lambda: logging.getLogger("vfl.other").error(CANARY),
        lambda: logging.getLogger("grpc").error(CANARY, extra={"peer": CANARY}, exc_info=KeyError(CANARY)),
        lambda: logging.error(CANARY),
        lambda: warnings.warn(CANARY, stacklevel=1),
    ],
)
def test_what_is_on_no_list_is_withheld(
    action: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        (line,) = logged(action, capsys)
    assert line["event"] in (WITHHELD, "job agreed")


def test_an_uncaught_error_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def raised() -> None:
        error = broken(ValueError(CANARY))
        sys.excepthook(ValueError, error, error.__traceback__)

    def threaded() -> None:
        thread = threading.Thread(target=lambda: EMPTY[CANARY])
        thread.start()
        thread.join()

    (line,) = logged(raised, capsys)
    assert (line["event"], line["error"]) == ("unexpected error", "ValueError")
    (line,) = logged(threaded, capsys)
    assert (line["event"], line["error"], line["level"]) == ("unexpected error", "KeyError", "critical")


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, f"No space left for {text}")


def test_a_log_that_cannot_be_written_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    with structured():
        monkeypatch.undo()
        log.info("serving", extra={"cell": CANARY})
    assert capsys.readouterr() == ("", "")


def test_a_file_is_its_owners_and_survives_rotation(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    file, moved = tmp_path / "logs" / "telco.log", tmp_path / "logs" / "telco.log.1"
    with structured(file=file):
        log.info("serving")
        file.rename(moved)
        log.info("stopping")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        (tmp_path / "logs").rename(tmp_path / "gone")
        log.info("stopping")  # there is no place for it: lost, and nobody stops
    written = [(tmp_path / "gone" / name.name).read_text() for name in (moved, file)]
    assert [[json.loads(line)["event"] for line in text.splitlines()] for text in written] == [
        ["serving"],
        ["stopping"],
    ]
    with (
        pytest.raises(ConfigError, match=r"cannot write the log .*telco.log: No such file"),
        structured(file=file),
    ):
        pass


def test_leaving_puts_everything_back() -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook, threading.excepthook, warnings.showwarning
    with pytest.raises(ZeroDivisionError), structured():
        1 / 0  # noqa: B018
    after = root.handlers[:], root.level, sys.excepthook, threading.excepthook, warnings.showwarning
    assert after == before


@given(st.sampled_from(sorted(FIELDS)), st.text() | st.binary() | st.integers() | st.none() | st.booleans())
def test_a_field_is_of_its_form_or_withheld(name: str, value: object) -> None:
    written = io.StringIO()
    error, sys.stderr = sys.stderr, written
    try:
        with structured():
            log.info("job agreed", extra={name: value})
    finally:
        sys.stderr = error
    (text,) = written.getvalue().splitlines()
    found = json.loads(text)[name]
    assert found in (value, WITHHELD)
    if isinstance(found, str) and found != WITHHELD:
        assert not set(found) & set("\"'\\\n<>{}=,;@")
    if not isinstance(value, str | int) or isinstance(value, bool):
        assert found == WITHHELD


def test_the_events_are_words() -> None:
    assert all(event.replace(" ", "").isalpha() and event.islower() for event in EVENTS)
