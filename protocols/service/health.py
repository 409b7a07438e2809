"""How a party that serves is: whether its loop turns, its store can be written, and files can be opened.

Takes part: one party, alone. Whoever asks the health service learns whether it serves, and not why it does
not; that is in the log, and in `status.json` in the store, for `vfl status`. A thread looks after all of it,
since the loop may be what is stuck.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from protocols.errors import ConfigError, DataError, VflError
from protocols.files import write_whole
from protocols.logs import log
from protocols.service.store import Store

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

STATUS = "status.json"
PULSE = 2.0  # seconds between two looks
BEAT = 0.5  # seconds between two beats of a loop that turns
SILENT = 5.0  # seconds without a beat, or without a look, until a party does not serve
SPARE = 32  # files that a job and its connections may need to open


class Health:
    """The health of one serving party, from its start on. Any thread may ask."""

    def __init__(self, store: Store) -> None:
        self._file = store.folder / STATUS
        self._beat = self._looked = time.monotonic()
        self._trouble = self._said = ""

    def beat(self) -> None:
        """Note that the event loop turns; the loop itself calls this every `BEAT` seconds."""
        self._beat = time.monotonic()

    def why(self) -> str:
        """Why the party does not serve, for its operator; "" if it does."""
        stuck = "" if time.monotonic() - self._looked < SILENT + PULSE else "its store does not answer"
        return self._held_up() or stuck or self._trouble

    def _held_up(self) -> str:
        late = time.monotonic() - self._beat > SILENT
        return f"its loop has not turned for {SILENT:g} s or longer: something holds it up" if late else ""

    @contextmanager
    def watched(self, tell: Callable[[], dict[str, Any]]) -> Iterator[None]:
        """Look every `PULSE` seconds, and write down what is found and what `tell` says of the party."""
        left = threading.Event()

        def watch() -> None:
            while not left.is_set():
                try:
                    self._trouble = self._look(tell)
                    self._say(self._held_up() or self._trouble)
                except BaseException as error:  # whatever it is, the next look may find it gone
                    self._trouble = type(error).__name__
                self._looked = time.monotonic()
                left.wait(PULSE)

        thread = threading.Thread(target=watch, name="vfl-health", daemon=True)
        thread.start()
        try:
            yield
        finally:
            left.set()
            thread.join(PULSE)  # a disk that hangs is no reason to hang too

    def _look(self, tell: Callable[[], dict[str, Any]]) -> str:
        """Return why the party cannot serve, apart from its loop; write its status if the disk allows."""
        trouble = too_few_files()
        found = {"pid": os.getpid(), "seen": datetime.now(UTC).isoformat(), "why": self._held_up() or trouble}
        try:
            write_whole(self._file, json.dumps({**tell(), **found}).encode(), durable=False)
        except DataError as error:
            return trouble or str(error)
        return trouble

    def _say(self, why: str) -> None:
        """Log why the party does not serve, whenever that has changed."""
        if why == self._said:
            return
        self._said = why
        if why:
            log.warning("not serving", exc_info=VflError(why))
        else:
            log.info("serving again")


def too_few_files() -> str:
    """Return why files cannot be opened; "" if `SPARE` more could be, or nobody can tell."""
    if resource is None:
        return ""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        count = len(os.listdir("/dev/fd"))
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"no file can be opened: {error.strerror}"
    few = limit != resource.RLIM_INFINITY and limit - count < SPARE
    return (
        f"fewer than {SPARE} of its {limit} files are left to be opened (LimitNOFILE, ulimit -n)"
        if few
        else ""
    )


def read_status(store: Store) -> dict[str, Any]:
    """What the party that serves `store` last wrote of itself, and whether that is now.

    `running`: its process is there. `why`: why it does not serve; "" if it does, or is not running.
    """
    path = store.folder / STATUS
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        silent = (datetime.now(UTC) - datetime.fromisoformat(found["seen"])).total_seconds()
    except FileNotFoundError:
        raise ConfigError(f"nothing has served {store.folder} yet; start `vfl serve`") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):  # it is not flushed: it says nothing after a loss of power
        raise ConfigError(
            f"{path} is torn or damaged: nothing serves {store.folder}; start `vfl serve`"
        ) from None
    if silent < 3 * PULSE + 2:
        return {"why": "", **found, "running": True}
    if _is_there(found.get("pid")):
        why = (
            f"it has written nothing here for {silent:.0f} s: is the disk full, or does it hang? See its log"
        )
        return {**found, "running": True, "why": why}
    return {**found, "running": False, "why": ""}


def _is_there(pid: object) -> bool:
    """Return whether such a process exists, ours or another's."""
    if not isinstance(pid, int) or pid <= 0 or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
