"""Structured logs: one JSON object a line, with nothing in it that is not on a list.

Takes part: one party, alone; a log is for its operators, and may be shipped to where its tables may not. So
an allow-list decides: of events, which are fixed texts; of fields, each with its own form. What is on no list
is withheld. Of an error come its type, party and scope, where in the code it arose and what it came from
(types again), and its words only where they are ours: those of other libraries quote cells, ids and URLs. For
the same reason nothing of another library's line is printed but its logger and level.

    with structured("info"):
        log.info("job agreed", extra={"job": job, "peer": "bank", "method": "fedavg"})
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from protocols.errors import ConfigError, PartyError, PolicyError, VflError

log = logging.getLogger("vfl")
WITHHELD = "(withheld)"
DEPTH = 8  # frames and causes of an error, at most
LONGEST = 1000  # characters of a reason
BURST, A_SECOND = 200.0, 1.0  # lines of one event about one peer

EVENTS = frozenset(
    {
        "serving",
        "not serving",
        "serving again",
        "stopping",
        "peer connected",
        "peer lost",
        "peer not reached",
        "line refused",
        "stream refused",
        "connections ended",
        "certificates renewed",
        "table read",
        "table not read",
        "job proposed",
        "job refused",
        "job waits for approval",
        "job approved",
        "job agreed",
        "job queued",
        "job running",
        "job checkpoint",
        "job resumed",
        "job done",
        "job failed",
        "job cancelled",
        "lease lost",
        "part saved",
        "part deleted",
        "policy breach",
        "request failed",
        "unexpected error",
    }
)


def _matching(pattern: str) -> Callable[[object], bool]:
    form = re.compile(pattern)
    return lambda value: isinstance(value, str) and form.fullmatch(value) is not None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_name = _matching(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
FIELDS: dict[str, Callable[[object], bool]] = {
    "party": _name,
    "peer": _name,
    "table": _name,
    "job": _matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"),
    "run": _matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"),
    "method": _matching(r"[A-Za-z][A-Za-z0-9._-]{0,62}"),
    "action": _matching(r"fit|predict|align"),
    "state": _matching(r"proposed|agreed|running|done|failed|cancelled"),
    "clause": _matching(r"[a-z_]{1,32}"),
    "kind": _matching(r"[a-z]+\.[A-Za-z]{1,63}(/[0-9]{1,9})?"),  # of a message
    "scope": _matching(r"[A-Za-z0-9 ._/-]{0,512}"),
    "address": _matching(r"[A-Za-z0-9.:\[\]_-]{1,270}"),
    "version": _matching(r"[A-Za-z0-9.+-]{1,64}"),
    **dict.fromkeys(
        ("rows", "epoch", "round", "bytes", "messages", "connections", "seconds", "jobs", "port"), _number
    ),
    "left_out": _number,  # lines like this one, since the one before
}
_OURS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Structured(logging.Formatter):
    """Formats a record as one line of JSON. It never raises, and never shows more than the lists allow."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": when, "level": record.levelname.lower(), "logger": record.name}
        if record.name == log.name:
            # The text as it stands in the code: arguments are not put into it.
            listed = isinstance(record.msg, str) and record.msg in EVENTS
            line["event"] = record.msg if listed else WITHHELD
            for name, value in vars(record).items():
                if name not in _OURS:
                    line.update(_field(name, value))
        else:
            line["event"] = WITHHELD
        if record.exc_info and record.exc_info[1] is not None:
            line |= describe(record.exc_info[1])
        return json.dumps(line)


def _field(name: str, value: object) -> dict[str, object]:
    form = FIELDS.get(name)
    if form is None:
        return {"withheld": True}
    return {name: value if form(value) else WITHHELD}


def describe(error: BaseException) -> dict[str, object]:
    """Describe an error for the log, without words of other libraries or values of variables."""
    said: dict[str, object] = {"error": type(error).__name__}
    if isinstance(error, VflError):
        clause = error.clause if isinstance(error, PolicyError) else ""
        for name, value in (("party", error.party), ("scope", error.scope), ("clause", clause)):
            said |= _field(name, value) if value else {}
        # A PartyError repeats the words of what caused it.
        if error.args and not isinstance(error, PartyError):
            said["reason"] = str(error.args[0])[:LONGEST]
    causes: list[str] = []
    below = error
    while len(causes) < DEPTH and (
        cause := below.__cause__ or (None if below.__suppress_context__ else below.__context__)
    ):
        causes.append(type(cause).__name__)
        below = cause
    if isinstance(error, BaseExceptionGroup):
        causes += [type(one).__name__ for one in error.exceptions[:DEPTH]]
    if causes:
        said["causes"] = causes
    frames = traceback.extract_tb(below.__traceback__)[-DEPTH:]
    if frames:
        said["at"] = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames]
    return said


class Bounded(logging.Filter):
    """At most `BURST` lines at once of one event about one peer, and then `A_SECOND`: what a peer can cause,
    it can cause without end, and a log is a disk. The next line says how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._room: dict[tuple[str, str, str], tuple[float, float, int]] = {}  # lines, as of when, left out
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        event = record.msg if isinstance(record.msg, str) and record.msg in EVENTS else ""
        known = record.name, event, str(getattr(record, "peer", ""))
        with self._lock:
            room, before, left_out = self._room.get(known, (BURST, record.created, 0))
            room = min(BURST, room + max(0.0, record.created - before) * A_SECOND)
            passes = room >= 1.0
            self._room[known] = room - passes, record.created, 0 if passes else left_out + 1
        if passes and left_out:
            record.left_out = left_out
        return passes


class _Quiet(logging.StreamHandler[TextIO]):
    """To a stream. What cannot be written is lost: the logging module would print the record's arguments."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's own name
        pass


class _QuietFile(WatchedFileHandler):
    """To a file, readable by its owner only, that a rotation may replace."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # of opening it again: a job does not fail for its log
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass

    def _open(self) -> Any:
        return os.fdopen(os.open(self.baseFilename, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "a")


@contextmanager
def structured(level: str = "info", file: Path | None = None) -> Iterator[None]:
    """Send every log of this process to `file` (default: stderr) as structured lines, until left.

    Warnings and errors that nobody caught go there too, since Python would print them with their values.
    ConfigError for a file that cannot be written.
    """
    handler: logging.Handler
    try:
        handler = _Quiet(sys.stderr) if file is None else _QuietFile(file)
    except OSError as error:
        raise ConfigError(f"cannot write the log {file}: {error.strerror}") from None
    handler.setFormatter(Structured())
    handler.addFilter(Bounded())
    root = logging.getLogger()
    handlers, before, hooks = root.handlers[:], root.level, (sys.excepthook, threading.excepthook)
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    sys.excepthook, threading.excepthook = _uncaught, _uncaught_in_thread
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        sys.excepthook, threading.excepthook = hooks
        root.setLevel(before)
        root.handlers[:] = handlers
        with suppress(OSError):
            handler.close()


def _uncaught(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    log.critical("unexpected error", exc_info=(kind, error, where))


def _uncaught_in_thread(said: threading.ExceptHookArgs) -> None:
    if said.exc_value is not None and said.exc_type is not SystemExit:
        log.critical("unexpected error", exc_info=(said.exc_type, said.exc_value, said.exc_traceback))
