"""How tests wait: for what happens, and not for so many seconds.

A test that gives what it waits for a few seconds fails on a busy machine, and says nothing of the code then.
A test of what must happen in time says so itself, and measures the machine by an undisturbed run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

HANG = 600.0  # seconds: nothing that a test waits for takes so long, however busy the machine, but a hang


def until(look: Callable[[], Any], words: Callable[[], str] = str) -> Any:
    """What `look` finds, once that is true. For what is on disk or in another thread, and gives no event.

    words: what to say where it never is.
    """
    begin = time.monotonic()
    while not (found := look()):
        assert time.monotonic() < begin + HANG, words()
        time.sleep(0.01)
    return found
