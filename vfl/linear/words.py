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


class InnerProducts(Message, reveals="lengths and angles of its own coefficients, gradients and steps"):
    """A feature party's part of what a direction and its penalty follow from."""

    gram: Annotated[Array, Spec("float64", ("b", "b"))]
    penalty: Annotated[Array, Spec("float64", ("c", "c"))]


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


class ConjugateSums(Message, reveals="lengths and angles of its own gradient and direction"):
    """A party's part of what the step and the next direction follow from."""

    curved: float  # direction times second derivative times direction
    gradient: Annotated[float, Field(ge=0)]  # gradient times itself
    across: float  # gradient times second derivative times direction
    change: Annotated[float, Field(ge=0)]  # second derivative times direction, times itself


class ConjugateStep(
    Message, reveals="how far the next step goes, how it combines with the last; whether training ends"
):
    """The label party's answer."""

    step: float
    keep: float
    more: bool


class ProximalSums(
    Message,
    reveals="how far its coefficients move, which slope they move along, what they cost by l1 and l2",
):
    """A party's part of whether a proximal step went well."""

    linear: float
    quadratic: Annotated[float, Field(ge=0)]
    penalty: Annotated[float, Field(ge=0)]
    turned: float


class ProximalStep(
    Message,
    reveals="whether the last step is taken, at which curvature to try it again if not, how much the next "
    "one carries on; whether the validation loss is the best so far; whether training ends",
):
    """The label party's answer."""

    taken: bool
    curvature: float
    momentum: float
    more: bool
    best: bool = False
    restore: bool = False
