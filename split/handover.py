"""What split learning says besides smashed data and cut gradients; see `protocols.learning.cut` for those.

The next client sees the layers that the one before it trained, whose weights remember training rows.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from protocols.arrays import Array, Arrays
from protocols.errors import DataError, ProtocolError
from protocols.learning.cut import Trainer
from protocols.learning.training import load_optimizer, optimizer_arrays
from protocols.wire.message import Message, Spec


class RowCount(Message, reveals="how many rows one client trains on, or asks about"):
    """What the server needs to know how many batches will come."""

    rows: Annotated[int, Field(ge=1)]


class HandOver(
    Message,
    reveals="the client-side layers as one client trained them, and its optimizer's moving averages of "
    "their gradients",
):
    """From one client to the next: go on from here."""

    weights: Arrays  # by state_dict names
    optimizer: Arrays  # "<parameter's position>.<state>", empty where training is over


class Outputs(Message, reveals="the trained model's output for each row that one client asked about"):
    """Scores of the classes, or standardised predictions."""

    z: Annotated[Array, Spec("float32", ("b", "outputs"))]


def hand_over(layers: nn.Module, optimizer: torch.optim.Optimizer | None) -> HandOver:
    """The state of `layers`, and of `optimizer` where there is one, copied."""
    moments = Arrays() if optimizer is None else optimizer_arrays(optimizer)
    return HandOver(weights=Arrays.from_module(layers), optimizer=moments)


def take_over(given: HandOver, trainer: Trainer) -> None:
    """Go on from what another client hands over. ProtocolError if it does not fit what is held here."""
    if not given.weights.like(Arrays.from_module(trainer.layers)):
        raise ProtocolError("the layers handed over are not those held here; same model and cut?")
    given.weights.load_into(trainer.layers)
    if trainer.optimizer is None:
        return
    try:
        load_optimizer(trainer.optimizer, given.optimizer)
    except DataError as error:
        raise ProtocolError(str(error)) from None
