"""What a party does again and again while it serves, so that nothing it meets can end it or make it spin.

Takes part: one party, alone; nothing here leaves it. Every task of the agent that lasts is such a loop: it
gives way to all others between two steps, and whatever a step raises is logged and waited out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from protocols.errors import VflError
from protocols.logs import log

SOONEST, LATEST = 0.05, 1.0  # seconds until a step that failed is tried again

Step = Callable[[], Awaitable[None]]
Wait = Callable[[float], Awaitable[object]]
Tell = Callable[[BaseException], None]


def tell(error: BaseException, **about: str) -> None:
    """Log a fault of a step. about: fields of the log."""
    if isinstance(error, VflError):
        log.warning("request failed", extra=about, exc_info=error)
    else:
        log.error("unexpected error", extra=about, exc_info=error)


async def steadily(step: Step, pause: float = 0.0, *, wait: Wait = asyncio.sleep, tell: Tell = tell) -> None:
    """Do `step` again and again, `pause` seconds apart, until this task is cancelled.

    A step that fails is tried again after a while, longer each time up to `LATEST` seconds. wait: waits so
    long, or shorter where it knows that a try is worth it. tell: hears of a fault when it begins and when it
    changes, not at each try.
    """
    after, said = SOONEST, ""
    while True:
        try:
            await step()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a library written in Rust panics with errors of its own
            if _ends(error):
                raise
            words = f"{type(error).__name__}: {error}"
            if words != said:
                said = words
                tell(error)
            await asyncio.sleep(SOONEST)  # whatever `wait` does, the rate has a bound
            await wait(after - SOONEST)
            after = min(2 * after, LATEST)
        else:
            after, said = SOONEST, ""
            await asyncio.sleep(pause)


def _ends(error: BaseException) -> bool:
    """Return whether this task itself is being cancelled, and not just something that it waited for."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
