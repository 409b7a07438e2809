"""Horizontal algorithms as values: what crosses the lines, and what each end does in a round.

Takes part: a server and clients, each with its own rule. A rule is two functions: `init` gives the state that
an end begins with, `apply` is one round. State is None or `Arrays`, so that it can be kept and gone on from.
A server's rule needs the clients' mean alone, so that it works as well where no single answer is visible.
Sources: McMahan et al., AISTATS 2017; Reddi et al., "Adaptive Federated Optimization", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Self, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from protocols.arrays import Array, Arrays
from protocols.wire.message import Message

S = TypeVar("S")
LOSS = "loss"  # the name of the mean training loss in an answer, beside the model's own names


class Model(Message, reveals="the global model, in the clear, and so what all clients' rows did to it"):
    """The model that a sampled client starts from, and at the end the result."""

    weights: Arrays


class Update(
    Message,
    reveals="one client's locally trained model in the clear, which can give away training rows; "
    "its row count and mean training loss",
):
    """A sampled client's answer, where the server sees each one."""

    weights: Arrays  # names, shapes and dtypes of the global model
    rows: Annotated[int, Field(ge=1)]  # training rows behind it
    loss: float  # mean over them, in the last local epoch

    @classmethod
    def of(cls, value: Arrays, weight: float) -> Self:
        """A client's answer, of as many rows as it weighs."""
        weights = Arrays((name, array) for name, array in value.items() if name != LOSS)
        return cls(weights=weights, rows=int(weight), loss=float(value[LOSS]))

    @property
    def value(self) -> Arrays:
        """The answer again."""
        return Arrays({**self.weights, LOSS: np.array(self.loss)})

    @property
    def weight(self) -> int:
        """What it weighs in the sum."""
        return self.rows


@dataclass(frozen=True)
class Local:
    """What a client's rule works with: its own network, to write into, its rows and its random numbers."""

    module: nn.Module
    x: torch.Tensor  # (n, ...)
    y: torch.Tensor  # (n, ...)
    rng: np.random.Generator  # new in each round


@dataclass(frozen=True)
class ClientRule(Generic[S]):
    """What a sampled client does: `apply(state, order, local)` gives its answer and its state after it.

    init: from the first global model. flops: of `apply`, for a network and rows of a shape.
    """

    init: Callable[[Arrays], S]
    apply: Callable[[S, Arrays, Local], tuple[Arrays, S]]
    flops: Callable[[nn.Module, tuple[int, ...]], float]


@dataclass(frozen=True)
class ServerRule(Generic[S]):
    """How the next global model follows: `apply(state, model, mean)` gives it, and the state after it.

    `mean - model` is the round's direction (the pseudo-gradient). Rules see trained parameters alone; what
    else a network holds, such as running statistics, is averaged. flops: of `apply`, per number.
    """

    init: Callable[[Arrays], S]
    apply: Callable[[S, Arrays, Arrays], tuple[Arrays, S]]
    flops: float = 0.0


@dataclass(frozen=True)
class Algorithm:
    """What crosses, and a rule at each end.

    order: the message to a sampled client. answer: what comes of it where the server sees each one; a sum
    that hides them sends its own. given: the shapes of an answer's arrays, from those of the model.
    """

    client: ClientRule[Any]
    server: ServerRule[Any]
    order: type[Model] = Model
    answer: type[Message] = Update
    given: Callable[[Arrays], Arrays] = lambda model: Arrays({**model, LOSS: np.zeros((), np.float64)})


def no_state(model: Arrays) -> None:
    """The `init` of a rule that keeps nothing between rounds."""
    return None


def diverged(model: Arrays, weights: Arrays) -> bool:
    """Whether `weights` hold NaN or infinity where `model` does not hold the same, as in a mask."""
    return any(_worse(a, model.get(name)) for name, a in weights.items())


def _worse(array: Array, before: Array | None) -> bool:
    bad = ~np.isfinite(array)
    if before is None or not bad.any():
        return bool(bad.any())
    return not np.array_equal(array[bad], before[bad], equal_nan=True)
