"""A party as a process that dies, as by `kill -9`, at a chosen moment of a job.

`serve` and `call` are what the processes run. The moments are what a party says and hears about jobs, what
it writes, and what it renames or deletes. A file `<party>.die` holds the number of the one that the next job
will not survive; `<party>.moments` grows by one byte with each.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protocols.errors import VflError
from protocols.federation import Federation
from protocols.record.file import Record
from protocols.service import attempt, caller, jobs, store
from protocols.service.jobs import Control, Propose
from tests.support import served
from tests.support.networked import ALL, SEED
from tests.support.waiting import HANG


class Life:
    """Counts moments, from the beginning of a job on, and ends at the one that was chosen."""

    def __init__(self, folder: Path, party: str) -> None:
        self._die, self._moments = folder / f"{party}.die", folder / f"{party}.moments"
        self._left: int | None = None
        self._counting = False

    def begin(self) -> None:
        """A job begins, the first of several or not."""
        self._counting = True
        if not self._die.exists():
            self._left = None
        elif self._left is None:
            self._left = int(self._die.read_text())

    def moment(self, last_words: Callable[[], object] = lambda: None) -> None:
        """One more moment; it may be the last, after `last_words`."""
        if not self._counting:
            return
        with self._moments.open("ab") as file:
            file.write(b".")
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self._die.unlink()
                last_words()
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str) -> None:
        """Make the call of `owner.name` two moments: before and after."""
        call = getattr(owner, name)

        @wraps(call)
        def both(*args: Any, **more: Any) -> Any:
            if not str(args[-1]).endswith("status.json"):  # written every two seconds, whatever happens
                self.moment()
            result = call(*args, **more)
            self.moment()
            return result

        setattr(owner, name, both)


def mortal(life: Life) -> None:
    """Let everything that matters after a death be a moment, and each party's seed the one in `networked`."""
    store.new_seed = lambda: SEED  # type: ignore[attr-defined]
    for owner, name in (
        *((os, "replace"), (shutil, "rmtree"), (store.Kept, "drop")),
        *((attempt, "save_part"), (caller, "save_part")),
    ):
        life.around(owner, name)
    say, hear, add = Control.say, Control.hear, Record._add

    async def dying_say(self: Control, to: str, message: Any) -> None:
        if not isinstance(message, jobs.Renew):
            life.moment()
        await say(self, to, message)

    async def dying_hear(self: Control, sender: str) -> Any:
        word = await hear(self, sender)
        if isinstance(word, Propose) and word.attempt == 1:
            life.begin()
        if not isinstance(word, jobs.Renew):
            life.moment()
        return word

    def dying_add(self: Record, *args: Any, **more: Any) -> None:
        life.moment(lambda: os.write(self._open(), b'{"index":1'))  # a torn row
        add(self, *args, **more)

    Control.say, Control.hear, Record._add = dying_say, dying_hear, dying_add  # type: ignore[method-assign]


def serve(config: Path, line: Connection) -> None:
    """`vfl serve`, until the other end of `line` is closed."""
    mortal(Life(config.parent, config.stem))
    threading.Thread(target=_end_with_whoever_started_us, args=(line,), daemon=True).start()
    served.serve(config)


def _end_with_whoever_started_us(line: Connection) -> None:
    for _ in words(line):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def call(folder: Path, method: str, line: Connection) -> None:
    """One job for each word on `line`, which is a path to write the outcome to."""
    case = ALL[method]
    life = Life(folder, case.caller)
    mortal(life)
    torch.set_num_threads(1)
    with Federation.connect(
        folder / "parties.toml", case.caller, case.tables()[case.caller], patience=HANG
    ) as all_:
        for path in words(line):
            life.begin()
            try:
                outcome = case.play(all_)
            except VflError as error:
                line.send_bytes(f"{type(error).__name__}: {error}".encode())
                continue
            arrays: dict[str, Any] = {**outcome.arrays, "run": np.array(outcome.run)}
            np.savez(path, **arrays)
            line.send_bytes(b"done")


def words(line: Connection) -> Iterator[str]:
    """What is said on `line`, until its other end is closed."""
    with suppress(EOFError, ConnectionResetError):
        while True:
            yield line.recv_bytes().decode()
