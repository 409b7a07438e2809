"""Faults: a transport wrapper that disturbs lines by a seeded plan.

Delays, duplicates and reorderings are repaired by the mailbox below it; a dropped envelope or a
cut line is not repaired in one process, and must end the run with one clear error. What befalls an
envelope depends on the seed and the envelope alone, never on timing.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import dataclass

from protocols.errors import ConfigError, LineError
from protocols.wire.transport import Envelope, Transport


@dataclass(frozen=True)
class Plan:
    """Probabilities are per envelope. ConfigError for a delay below 0, or a probability outside [0, 1]."""

    seed: int = 0
    delay: float = 0.0  # up to this many seconds, uniformly; longer than a gap, it reorders
    duplicate: float = 0.0  # probability of a second copy, delayed on its own
    drop: float = 0.0  # probability of being lost
    cut: tuple[str, str] | None = None  # this line, in both directions,
    cut_after: int = 0  # is dead after so many envelopes

    def __post_init__(self) -> None:
        if not self.delay >= 0 or not all(0 <= p <= 1 for p in (self.duplicate, self.drop)):
            raise ConfigError(f"{self}: expected a delay of at least 0, and probabilities from 0 to 1")


class Faults:
    """Wraps a transport and disturbs what it delivers."""

    def __init__(self, inner: Transport, plan: Plan) -> None:
        self._inner, self.plan = inner, plan
        self._carried = 0
        self._late: set[asyncio.Task[None]] = set()

    async def deliver(self, envelope: Envelope) -> None:
        plan = self.plan
        if plan.cut and {envelope.sender, envelope.receiver} == set(plan.cut):
            if self._carried >= plan.cut_after:
                raise LineError(
                    f"the line to {envelope.receiver} is cut after {self._carried} messages; "
                    f"{envelope.kind} was not delivered"
                )
            self._carried += 1
        e = envelope
        name = f"{plan.seed}|{e.sender}|{e.receiver}|{e.scope}|{e.sequence}"
        fate = random.Random(hashlib.sha256(name.encode()).digest())
        if fate.random() < plan.drop:
            return
        for _ in range(1 + (fate.random() < plan.duplicate)):
            late = fate.random() * plan.delay
            if late:
                self._after(late, envelope)
            else:
                await self._inner.deliver(envelope)

    def _after(self, seconds: float, envelope: Envelope) -> None:
        async def later() -> None:
            await asyncio.sleep(seconds)
            await self._inner.deliver(envelope)

        task = asyncio.get_running_loop().create_task(later())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def collect(self, receiver: str, sender: str, scope: str) -> Envelope:
        return await self._inner.collect(receiver, sender, scope)

    def close(self, receiver: str, scope: str) -> None:
        self._inner.close(receiver, scope)
