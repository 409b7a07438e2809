"""A job that has begun and does nothing but wait, at a party whose turn another caller waits for.

Takes part: one party, about a job that runs here. What it waits for may take long where it is computed: that
looks the same as a peer that has stopped on purpose. So such a job is ended with an error that its caller
makes another attempt after: it goes on from its last step when its turn comes again, behind those who waited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol, TypeVar

from protocols.errors import LineError
from protocols.service.turns import Place

T = TypeVar("T")
_LOOKS = 10  # in the time that a silence may take


class Waits(Protocol):
    """The view of a job's `Post` that tells how long the job has waited."""

    def silence(self) -> tuple[float, str]: ...


async def unless_silent(work: Awaitable[T], post: Waits, place: Place, minutes: float) -> T:
    """Await `work`; raise LineError once it has only waited for long while another caller waits for `place`.

    If no other caller waits, `work` may take as long as it likes.
    """
    task, most = asyncio.ensure_future(work), 60.0 * minutes
    try:
        while not task.done():
            seconds, who = post.silence()
            if seconds >= most and place.wanted.is_set():
                raise LineError(
                    f"nothing has come from {who} for {minutes:g} min (longest_silence_minutes), and another "
                    "caller waits; the job can go on from its last step after that one's"
                )
            await asyncio.wait({task}, timeout=max(most - seconds, most / _LOOKS))
        return await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
