"""The virtual clock: an event loop in which waiting takes no wall time.

When every task waits, time jumps to the next timer; when there is none, nothing can ever
happen again, and that is reported at once instead of hanging. Runs in a thread of its own, so
that it also works below a notebook's running loop.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import selectors
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from math import ulp
from typing import Any, TypeVar

from protocols.errors import StallError

T = TypeVar("T")
YOUNG = (
    20_000  # new objects until the garbage collector looks at them; Python's own 700 is for small programs
)
PATIENCE = 1.0  # seconds that roles have after Ctrl-C to come to an await


class _Jump(selectors.DefaultSelector):
    """A selector that advances the clock where another would block."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if not ready and timeout is None:
            self.loop.stalled()
        elif not ready and timeout:
            self.loop.advance(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` is simulated seconds since its start."""

    def __init__(self, on_stall: Callable[[], None] = lambda: None) -> None:
        selector = _Jump()
        selector.loop = self
        super().__init__(selector)
        self._clock_resolution = 1e-9
        self.now = 0.0
        self._on_stall = on_stall
        self._main: asyncio.Task[Any] | None = None

    def time(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let simulated time pass."""
        self.now += seconds
        # asyncio fires a timer once it is below now + resolution, which must not round to now.
        self._clock_resolution = max(1e-9, 2 * ulp(self.now))

    def stalled(self) -> None:
        """Let the transport fail its waits when nothing can happen; if that frees nobody, stop the run."""
        self._on_stall()
        if not self._ready and self._main is not None:  # type: ignore[attr-defined]
            self._main.cancel("stalled")

    async def guard(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main`; a stall that no transport explains becomes a StallError."""
        self._main = asyncio.current_task()
        try:
            return await main
        except asyncio.CancelledError as error:
            if "stalled" in error.args:
                raise StallError("no role can go on, and none waits for a message") from None
            raise


def run_virtual(main: Coroutine[Any, Any, T], on_stall: Callable[[], None] = lambda: None) -> tuple[T, float]:
    """Run `main` to its end under a virtual clock. Return its result and the simulated seconds it took.

    Ctrl-C cancels `main`, waits for it to clean up, and is raised here. Tasks that `main` leaves
    behind are cancelled.
    """
    loop = VirtualLoop(on_stall)
    task: asyncio.Task[T] = loop.create_task(loop.guard(main))
    outcome: list[BaseException] = []

    done = threading.Event()  # not thread.join(): once interrupted, Python 3.11's takes the thread for ended

    def work() -> None:
        asyncio.set_event_loop(loop)
        try:
            try:
                loop.run_until_complete(task)
            finally:
                _settle(loop)
                loop.close()
        except BaseException as error:
            outcome.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=work, name="vfl-virtual-clock", daemon=True)
    # See docs/decisions/007-messages-in-bulk.md.
    frozen, young = not gc.get_freeze_count(), gc.get_threshold()
    if frozen:
        gc.freeze()
        gc.set_threshold(young[0] and max(young[0], YOUNG), *young[1:])  # 0: somebody has turned it off
    try:
        thread.start()
        # A signal just before a wait without end would be seen at its end only.
        while not done.wait(0.5):
            pass
    except KeyboardInterrupt:
        with suppress(RuntimeError):  # the loop has just closed
            loop.call_soon_threadsafe(task.cancel)
        if not done.wait(PATIENCE) and thread.ident is not None:
            # It computes and never awaits. Have Ctrl-C raised there, as it would be in the main thread.
            where, what = ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(where, what)
            # It may strike anywhere, even where `done` was about to be set.
            while thread.is_alive() and not done.wait(PATIENCE):
                pass
        raise
    finally:
        if frozen:
            gc.set_threshold(*young)
            gc.unfreeze()
    thread.join()
    if outcome:
        raise outcome[0]
    return task.result(), loop.now


def _settle(loop: VirtualLoop) -> None:
    """Cancel what is left and let it clean up, so that no task outlives its run."""
    while left := asyncio.all_tasks(loop):
        for task in left:
            task.cancel()
        try:
            loop.run_until_complete(asyncio.wait(left))
        except (KeyboardInterrupt, SystemExit):
            continue  # a task that raises these stops the loop; the others are still to be waited for
    loop.run_until_complete(loop.shutdown_asyncgens())
