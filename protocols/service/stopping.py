"""How a process that serves is told to stop, and stops whatever it is doing.

Takes part: one party, alone. SIGTERM and Ctrl-C cancel its work, which then takes leave of its peers. The
signal is taken by Python itself, not by the event loop, and a thread counts the seconds: so a loop that no
longer turns, and a computation that cannot be given up, stop too. A store takes no harm from that.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from protocols.errors import StallError
from protocols.logs import log

FAREWELL = 20.0  # seconds from the signal, at most


async def until_told(work: Coroutine[Any, Any, None]) -> None:
    """Do `work` until it ends or a signal tells this process to stop: then it is cancelled."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    told = False

    def stop(number: int, frame: object) -> None:
        nonlocal told
        if not told:
            told = True
            with suppress(RuntimeError):  # no more threads: then it is up to the loop
                threading.Thread(target=_end, name="vfl-stopping", daemon=True).start()
        loop.call_soon_threadsafe(task.cancel)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end() -> None:
    threading.Event().wait(FAREWELL)
    log.critical("stopping", exc_info=StallError(f"it had not stopped {FAREWELL:g} s after it was told to"))
    os._exit(1)
