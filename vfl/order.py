"""The order in which an epoch of a vertical model visits the common rows, drawn by the label party.

Takes part: the label party tells, every feature party hears and checks it. It says nothing about any row.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from protocols.arrays import Array
from protocols.errors import ProtocolError
from protocols.wire.message import Message, Spec


class Order(Message, reveals="the random order in which an epoch visits the common rows"):
    """Positions in the common rows, each once."""

    rows: Annotated[Array, Spec("uint32", ("n",))]


def positions(message: Order, rows: int, sender: str) -> Array:
    """The positions that `message` holds, int64 (rows,). ProtocolError unless it is each of `rows` once."""
    order = message.rows.astype(np.int64)
    if not np.array_equal(np.sort(order), np.arange(rows)):
        raise ProtocolError(
            f"{message.kind} from {sender}: expected each of {rows} rows once, got {len(order)} positions"
        )
    return order
