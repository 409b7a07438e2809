"""What the parties of a linear model say to each other beside residuals, gradients and masks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from protocols.arrays import Array
from protocols.wire.message import Message, Spec


class LinearStart(
    Message,
    reveals="its public key; how many outputs the model has; which common rows are held out for validation",
):
    """The label party's first word."""

    key: bytes
    outputs: Annotated[int, Field(ge=1, strict=True)]
    held_out: Annotated[Array, Spec("uint32", ("m",))]


class PartialScores(
    Message,
    reveals="for each row the sum of its columns times numbers of its own, coefficients or directions: in "
    "the clear if it is the only feature party, else hidden in the sum over all feature parties",
):
    """In fixed point, modulo 2^64."""

    scores: Annotated[Array, Spec("int64", ("n", "k"))]


class InnerProducts(
    Message,
    reveals="lengths and angles of its own coefficients, gradients and steps, and its largest slope",
):
    """A feature party's part of what a direction and its penalty follow from."""

    gram: Annotated[Array, Spec("float64", ("b", "b"))]
    penalty: Annotated[Array, Spec("float64", ("c", "c"))]
    steepest: Annotated[float, Field(ge=0)]


class Move(
    Message,
    reveals="how earlier gradients and steps combine into the next one, and how far it goes; whether the "
    "validation loss is the best so far; whether training ends",
):
    """The label party's answer: the step that everybody takes."""

    coefficients: Annotated[Array, Spec("float64", ("b",))]
    step: float
    more: bool
    best: bool = False
    restore: bool = False


class RowOrder(Message, reveals="the random order in which an epoch visits the common rows"):
    """Positions among the rows of training, each once."""

    rows: Annotated[Array, Spec("uint32", ("n",))]
