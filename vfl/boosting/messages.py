"""What the parties of a boosted model tell each other.

Takes part: the label party and each feature party. Each message says what it shows; in which order they are
sent is in `vfl.boosting` and `vfl.boosting.predict`.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from protocols.arrays import Array
from protocols.errors import ProtocolError
from protocols.wire.message import Message, Spec

MOST_OUTPUTS = 1000


class TreeKey(
    Message, reveals="how many classes there are, and the public key that gradients are sealed with"
):
    """From the label party, before the first tree."""

    key: bytes  # empty where nothing is encrypted
    outputs: Annotated[int, Field(ge=1, le=MOST_OUTPUTS)]  # trees of a round: one a class if over two


class BinCounts(
    Message,
    reveals="how many columns the sender has, how many bins each is divided into, which of them are "
    "categories, and which way the prediction may go with each (monotone constraints); no name and no value",
):
    """From each feature party, before the first tree."""

    bins: Annotated[Array, Spec("uint8", ("c",))]  # without that of missing values
    categorical: Annotated[Array, Spec("bool", ("c",))]
    monotone: Annotated[Array, Spec("int8", ("c",))]


class Drawn(
    Message,
    reveals="which common rows a round of trees learns from, and which of the receiver's columns; rows that "
    "are never drawn are for validation or have weight 0, and those that are always drawn by GOSS have large "
    "gradients",
):
    """From the label party, at the beginning of a round. Without columns the receiver sits the round out."""

    rows: Annotated[Array, Spec("uint8", ("b",))]  # bits
    columns: Annotated[Array, Spec("bool", ("c",))]


class Enough(Message, reveals="after how many rounds training stops, and how many of them are kept"):
    """From the label party, in place of a round or after the last."""

    rounds: Annotated[int, Field(ge=0)]  # that are kept


class SealedGradients(
    Message, reveals="nothing but their number: the drawn rows' gradients and hessians under the sender's key"
):
    """Some of the drawn rows, in order; a round has several of these."""

    words: Annotated[Array, Spec("uint64", ("n", "w"))]
    head: dict[str, Any]


class ClearGradients(
    Message,
    reveals="the drawn rows' gradients and hessians in the clear, from which their labels and weights can be "
    "read",
    carries={"labels"},
):
    """The same with nothing encrypted."""

    values: Annotated[Array, Spec("int32", ("n", "s"))]


class SealedSums(
    Message,
    reveals="to the key's owner alone: for each node of a level and each bin of the sender's columns, gaps "
    "too, the sum of the receiver's own gradients and hessians, and how many rows are in it; bins and "
    "columns are numbers",
):
    """From a feature party, for each level: histograms of one child of each pair."""

    words: Annotated[Array, Spec("uint64", ("n", "w"))]
    head: dict[str, Any]


class ClearSums(
    Message,
    reveals="for each node of a level and each bin of the sender's columns, gaps too, the sum of the "
    "receiver's own gradients and hessians, and how many rows are in it; bins and columns are numbers",
):
    """The same with nothing encrypted."""

    values: Annotated[Array, Spec("int64", ("n", "s"))]


class Divided(
    Message,
    reveals="which nodes of a level are split, and by which bins of which of the receiver's own columns: "
    "what divides labels best, and of categories those where gradients are lower; not the gain, and not "
    "whose column splits another node",
):
    """From the label party, for each level. `left` says which bins go left, that of missing values first."""

    fate: Annotated[Array, Spec("uint8", ("n",))]  # of each node: LEAF, YOURS or OTHERS
    columns: Annotated[Array, Spec("uint32", ("k",))]
    left: Annotated[Array, Spec("uint8", ("k", 32))]  # bits


class Sides(Message, reveals="of the rows in nodes that are split, which go left"):
    """From who splits to the label party, and from it to all others: of each row that was asked about."""

    left: Annotated[Array, Spec("uint8", ("b",))]  # bits


class Reached(Message, reveals="which rows reach which of the receiver's own splits"):
    """From the label party when predicting, for each level."""

    splits: Annotated[Array, Spec("uint32", ("k",))]
    rows: Annotated[Array, Spec("uint8", ("k", "b"))]  # bits


class Arrived(Message, reveals="how many levels the deepest path of any row has"):
    """From the label party when predicting: no row waits at a split."""


class Outcomes(Message, reveals="which way each row would go at each of the sender's splits, reached or not"):
    """From each feature party when predicting in one round."""

    left: Annotated[Array, Spec("uint8", ("k", "b"))]  # bits


LEAF, YOURS, OTHERS = 0, 1, 2


def to_bits(flags: Array) -> Array:
    """Truth values as bits, along the last axis."""
    return np.packbits(flags, axis=-1)


def from_bits(bits: Array, count: int, kind: str, sender: str) -> Array:
    """The first `count` of the last axis. ProtocolError if there are not as many bytes as they take."""
    if bits.shape[-1] != -(-count // 8):
        raise ProtocolError(
            f"{kind} from {sender}: expected {-(-count // 8)} bytes for {count} rows, got {bits.shape[-1]}"
        )
    return np.unpackbits(bits, axis=-1, count=count).astype(bool)
