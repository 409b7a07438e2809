"""Smashed-data exchange: what crosses between the holder of lower layers and the holder of upper layers.

Two parties. The lower one sends the cut layer's output for a batch of rows, the upper one answers with the
gradient of the loss with respect to it. The upper party learns the smashed data: rows can be reconstructed
from it, by training an inverse on similar data, or, by a server that lies about its gradients, by steering
the client's layers (Pasquini, Ateniese and Bernaschi 2021). The lower party learns the cut gradients, which
in classification tell labels apart (Li et al. 2022). Semi-honest parties; no defence is applied here.
Gupta and Raskar 2018; Vepakomma et al. 2018.

Activations of any rank cross as float32 (b, k); both sides know the shape of one row from the model and
the cut. Reshaping changes no bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated

import torch

from protocols.arrays import Array, to_torch
from protocols.errors import ProtocolError
from protocols.wire.message import Message, Spec


class Smashed(
    Message, reveals="the cut layer's output for each row of a batch, from which rows can be reconstructed"
):
    """Smashed data."""

    h: Annotated[Array, Spec("float32", ("b", "k"))]


class LabelledSmashed(
    Message,
    reveals="the cut layer's output for each row of a batch, from which rows can be reconstructed, "
    "and each row's label",
    carries={"labels"},
):
    """Smashed data with the labels, for a receiver that computes the loss."""

    h: Annotated[Array, Spec("float32", ("b", "k"))]
    labels: Annotated[Array, Spec("int64|float32", ("b",))]


class CutGradient(
    Message,
    reveals="the loss's gradient at the cut layer for each row of a batch, which can tell labels apart",
):
    """The answer to smashed data while training."""

    g: Annotated[Array, Spec("float32", ("b", "k"))]


def to_wire(tensor: torch.Tensor) -> Array:
    """A float32 tensor (b, ...) as an array (b, k), without a copy where its memory allows that."""
    flat = tensor.detach()
    array: Array = (flat if flat.dim() == 2 else flat.reshape(len(flat), -1)).numpy()
    return array


def from_wire(array: Array, shape: Sequence[int], rows: int | None = None) -> torch.Tensor:
    """An array (b, k) as a tensor (b, *shape) of its own memory.

    ProtocolError if k is not the size of `shape`, or b not `rows` where that is given.
    """
    size = prod(shape)
    if array.shape[1] != size or (rows is not None and len(array) != rows):
        raise ProtocolError(
            f"expected {'any number of' if rows is None else rows} rows of {size} numbers at the cut, "
            f"got {len(array)} of {array.shape[1]}; do both sides use the same model and cut?"
        )
    tensor = to_torch(array)
    return tensor if len(shape) == 1 else tensor.reshape(len(array), *shape)
