"""What the parties of a linear model say to each other beside residuals, gradients and masks."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from protocols.arrays import Array
from protocols.wire.message import Message, Spec


def _finite(numbers: Array) -> Array:
    if not np.isfinite(numbers).all():
        raise ValueError("expected finite numbers")
    return numbers


Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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

    gram: Annotated[Array, Spec("float64", ("b", "b")), AfterValidator(_finite)]
    penalty: Annotated[Array, Spec("float64", ("c", "c")), AfterValidator(_finite)]


class Move(
    Message,
    reveals="how earlier gradients and steps combine into the next one, and how far it goes; whether the "
    "validation loss is the best so far; whether training ends",
):
    """The label party's answer: the step that everybody takes."""

    coefficients: Annotated[Array, Spec("float64", ("b",)), AfterValidator(_finite)]
    step: Positive
    more: bool
    best: bool = False
    restore: bool = False


class TrialProducts(Message, reveals="lengths and angles of its own gradients and steps"):
    """A party's part of how far a step goes, and of the next direction, where nobody knows scores."""

    gram: Annotated[Array, Spec("float64", ("b", "b")), AfterValidator(_finite)]


class ProximalSums(
    Message,
    reveals="how far its coefficients move, which slope they move along, what they cost by l1 and l2",
):
    """A party's part of whether a proximal step went well."""

    linear: Number
    quadratic: Positive
    penalty: Positive
    turned: Number


class ProximalStep(
    Message,
    reveals="whether the last step is taken, at which curvature to try it again if not, how much the next "
    "one carries on; whether the validation loss is the best so far; whether training ends",
):
    """The label party's answer."""

    taken: bool
    curvature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    momentum: Annotated[float, Field(ge=0, le=1)]
    more: bool
    best: bool = False
    restore: bool = False
