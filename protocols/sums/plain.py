"""Sums of what many parties hold, at one party: the seam, and the plain way, in which that one sees every
part.

Takes part: parties that give, and one that takes. What the taker learns is the way's affair: of `Plain`, each
part and its weight; of `protocols.sums.masked.Masked`, the sum alone. The roles of a method are the same
whichever way is taken, so they may use `Pooled.mean` and `Pooled.weight` always, and `Pooled.parts` only
where somebody saw them: a rule that compares parts has no place in a sum that hides them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from protocols.arrays import Arrays, weighted_mean
from protocols.errors import ProtocolError
from protocols.party import Coordinator, Party
from protocols.wire.message import Message


@dataclass(frozen=True)
class Part:
    """What one party gave to a sum that shows parts."""

    value: Arrays
    weight: float


@dataclass(frozen=True)
class Pooled:
    """What a sum tells the party that takes it."""

    mean: Arrays  # weighted, over all that gave
    weight: float  # of all together
    parts: Mapping[str, Part] = field(default_factory=dict, repr=False)  # by party; empty: nobody saw them


class Sum(Protocol):
    """A way to sum. hides: whether the parts stay hidden from all. speaks: the messages that it sends."""

    hides: bool

    @property
    def speaks(self) -> tuple[type[Message], ...]: ...

    async def give(self, at: Party, to: str, peers: Sequence[str], value: Arrays, weight: float) -> None:
        """Give `value`, with a `weight` above 0, to the sum at `to`. peers: all that give, this
        party too, in one order at all."""

    async def take(self, at: Coordinator, of: Sequence[str], like: Arrays) -> Pooled:
        """Take the weighted mean of what each of `of` gave, with names, shapes and dtypes of
        `like`. ProtocolError for anything else."""


class Given(Protocol):
    """A message of a method's own that carries a part in the clear."""

    @classmethod
    def of(cls, value: Arrays, weight: float) -> Self: ...

    @property
    def value(self) -> Arrays: ...

    @property
    def weight(self) -> float: ...


class Plain:
    """Every part in the clear, as a message of the method's own, whose `reveals` says what it shows."""

    hides = False

    def __init__(self, kind: type[Message]) -> None:
        """kind: a message that is `Given`."""
        self.kind: Any = kind

    @property
    def speaks(self) -> tuple[type[Message], ...]:
        """The messages this sum sends: the one that carries a part."""
        return (self.kind,)

    async def give(self, at: Party, to: str, peers: Sequence[str], value: Arrays, weight: float) -> None:
        """Send one message, with the part, to `to`."""
        await at.send(to, self.kind.of(value, weight))

    async def take(self, at: Coordinator, of: Sequence[str], like: Arrays) -> Pooled:
        """Take the mean in the order of `of`, never of arrival; 2 FLOPs for every number of every part."""
        came = await at.gather(self.kind, of=of)
        parts = {party: Part(said.value, said.weight) for party, said in came.items()}
        for party, part in parts.items():
            if not part.value.like(like):
                raise ProtocolError(
                    f"{self.kind.kind} from {party} in {at.scope!r}: expected {like!r}, got {part.value!r}; "
                    "are columns and model the same at all?"
                )
        weights = [part.weight for part in parts.values()]
        values = [part.value for part in parts.values()]
        mean = await at.compute(weighted_mean, values, weights, cost=2.0 * len(parts) * like.size)
        return Pooled(mean, float(sum(weights)), parts)
