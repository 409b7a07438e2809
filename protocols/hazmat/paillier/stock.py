"""A stock of obfuscators, filled in the background while a role waits for messages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread

import numpy as np

from protocols.hazmat.paillier.engine import Cells

_BATCH = 16  # obfuscators made at once: some 10 ms, after which a waiting role gets its turn


class Stock:
    """At most `limit` obfuscators in memory, each handed out once."""

    def __init__(self, make: Callable[[int], Cells]) -> None:
        self._make = make
        self._held: list[Cells] = []
        self._count = 0
        self._lock = Lock()  # around what is held
        self._one = Lock()  # one thread fills at a time
        self._owner = os.getpid()

    def __len__(self) -> int:
        return self._count

    def take(self, count: int) -> Cells:
        """`count` obfuscators: what is in stock, and the rest made now."""
        with self._lock:
            if self._owner != os.getpid():  # after a fork both processes would use the same ones
                self._held, self._count, self._owner = [], 0, os.getpid()
            taken: list[Cells] = []
            missing = count
            while self._held and missing:
                batch = self._held.pop()
                if len(batch) > missing:
                    batch, rest = batch[:missing], batch[missing:]
                    self._held.append(rest)
                taken.append(batch)
                missing -= len(batch)
            self._count -= count - missing
        if missing:
            taken.append(self._make(missing))
        return np.concatenate(taken) if taken else self._make(0)

    @contextmanager
    def filling(self, limit: int) -> Iterator[None]:
        """Fill up to `limit` in a thread for as long as the block lasts.

        Leaving the block does not wait for the batch that is being made; it is kept like the others.
        """
        done = Event()

        def fill() -> None:
            with self._one:
                while not done.is_set() and (room := limit - len(self)) > 0:
                    batch = self._make(min(_BATCH, room))
                    with self._lock:
                        self._held.append(batch)
                        self._count += len(batch)

        Thread(target=fill, name="obfuscators", daemon=True).start()
        try:
            yield
        finally:
            done.set()
