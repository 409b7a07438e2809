"""What every way to learn from divided data is made of: messages, parties, federations and programs.

These are the names that the author of a method needs; what stands behind them is in the modules of this
package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.lazy import lazily

if TYPE_CHECKING:
    from protocols.arrays import Arrays
    from protocols.federation import Federation, simulate
    from protocols.party import Coordinator, Party
    from protocols.programs import Parameters, Program, Seat
    from protocols.wire.message import Message, Spec

__all__ = [
    "Arrays",
    "Coordinator",
    "Federation",
    "Message",
    "Parameters",
    "Party",
    "Program",
    "Seat",
    "Spec",
    "simulate",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Arrays": "protocols.arrays",
        "Coordinator": "protocols.party",
        "Federation": "protocols.federation",
        "Message": "protocols.wire.message",
        "Parameters": "protocols.programs",
        "Party": "protocols.party",
        "Program": "protocols.programs",
        "Seat": "protocols.programs",
        "Spec": "protocols.wire.message",
        "simulate": "protocols.federation",
    },
)
