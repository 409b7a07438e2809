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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Annotated

import numpy as np
import torch
from torch import nn

from protocols.arrays import Array, Arrays, to_torch
from protocols.errors import ProtocolError
from protocols.flops import backward_flops, forward_flops, forward_flops_in_training, training_flops
from protocols.learning.training import Settings, evaluated, in_batch, restore, snapshot
from protocols.party import Party
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


@dataclass(frozen=True)
class Segment:
    """Consecutive layers that one party holds, and who holds those below and above.

    module: takes the rows that come in here, if any do, then what each of `below` sends.
    """

    module: nn.Module
    below: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # party -> shape of a row of its
    above: str | None = None  # None: the loss is computed here
    labels: bool = False  # whether labels travel with the smashed data, up or from below
    random: bool = False  # whether training draws random numbers, as dropout does
    cost: Callable[..., float] | None = None  # of training on inputs; by default, as of `module` alone

    def training_flops(self, inputs: Sequence[torch.Tensor]) -> float:
        """FLOPs of forward and backward on `inputs`, to the inputs where they came from below."""
        if self.cost is not None:
            return self.cost(*inputs)
        return training_flops(self.module, *inputs, input_gradient=bool(self.below))


class Trainer:
    """One party's layers, and the optimizer that steps them once per batch."""

    def __init__(self, settings: Settings, layers: nn.Module) -> None:
        self.layers = layers.train()
        self.settings = settings
        self._parameters = list(layers.parameters())
        # Layers such as a lone ReLU have nothing to step, and torch refuses an empty optimizer.
        self.optimizer = settings.new_optimizer(self._parameters) if self._parameters else None

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Of outputs (b, outputs) against class positions int64 (b,), or numbers float32 (b,) or (b, 1)."""
        if self.settings.kind == "regression" and targets.dim() == 1:
            targets = targets.unsqueeze(1)
        return self.settings.loss(outputs, targets)

    def learn(
        self, module: nn.Module, inputs: Sequence[torch.Tensor], targets: torch.Tensor, step: bool
    ) -> None:
        """Forward through the last layers and back to `inputs`; then a step, if it is time for one."""
        self.loss(module(*inputs), targets).backward()  # type: ignore[no-untyped-call]
        if step:
            self.step()

    def back(self, h: torch.Tensor, g: torch.Tensor, step: bool) -> None:
        """Backward from an output `h` with its gradient `g`; then a step, if it is time for one."""
        if h.requires_grad:
            h.backward(g)  # type: ignore[no-untyped-call]
        if step:
            self.step()

    def step(self) -> None:
        """Step on the gradients, and clear them."""
        if self.optimizer is not None:
            self.optimizer.step()
        for parameter in self._parameters:
            parameter.grad = None

    def snapshot(self) -> Arrays:
        """Layers and optimizer, to go on from."""
        return snapshot(self.layers, self.optimizer)

    def restore(self, state: Arrays) -> None:
        """Take up what `snapshot` gave."""
        restore(state, self.layers, self.optimizer)


async def exchange(
    at: Party,
    mine: Sequence[Segment],
    trainer: Trainer,
    draws: np.random.Generator,
    x: torch.Tensor | None = None,
    y: torch.Tensor | None = None,
) -> None:
    """One batch upwards through the segments of this party, back down, and one step.

    mine: from the lowest up; a party may hold several, as the client of a U-shape does. x (b, ...): rows that
    come in at the first; y (b,): targets, where this party has them. One segment below another party's is
    split learning, several below one are a vertical network, and longer chains work alike.
    """
    passed: list[tuple[Segment, list[torch.Tensor], list[torch.Tensor], torch.Tensor]] = []
    for segment in mine:
        rng = draws if segment.random else None
        own = [x] if x is not None and not passed else []
        rows = len(x) if x is not None else None if y is None else len(y)
        came, labels = await _receive(at, segment, rows, labelled=segment.labels and y is None)
        inputs, y = own + came, y if labels is None else labels
        if segment.above is None:
            assert y is not None
            cost = segment.training_flops(inputs)
            with in_batch(len(y)):
                await at.compute(trainer.learn, segment.module, inputs, y, not passed, cost=cost, rng=rng)
            await _answer(at, segment, came)
            continue
        cost = forward_flops_in_training(segment.module, *inputs)
        with in_batch(len(inputs[0])):
            h = await at.compute(segment.module, *inputs, cost=cost, rng=rng)
        await at.send(segment.above, _smashed(h, y if segment.labels else None))
        passed.append((segment, inputs, came, h))
    for place, (segment, inputs, came, h) in reversed([*enumerate(passed)]):
        assert segment.above is not None
        g = from_wire((await at.recv(segment.above, CutGradient)).g, h.shape[1:], len(h))
        cost = backward_flops(segment.module, *inputs, input_gradient=bool(came))
        await at.compute(trainer.back, h, g, place == 0, cost=cost)
        await _answer(at, segment, came)


async def forward(
    at: Party, mine: Sequence[Segment], x: torch.Tensor | None = None, rows: int | None = None
) -> Array | None:
    """One batch upwards through the segments of this party, in evaluation mode.

    Returns the network's outputs, float32 (b, outputs), where its last layers are this party's; else None.
    rows: how many are expected from below.
    """
    for place, segment in enumerate(mine):
        rows = len(x) if x is not None else rows
        came, _ = await _receive(at, segment, rows, labelled=False, training=False)
        inputs = ([x] if x is not None and place == 0 else []) + came
        cost = forward_flops(segment.module, *inputs)
        z = await at.compute(evaluated, segment.module, *inputs, cost=cost)
        if segment.above is None:
            return z
        await at.send(segment.above, Smashed(h=z.reshape(len(z), -1)))
    return None


async def _receive(
    at: Party, segment: Segment, rows: int | None, *, labelled: bool, training: bool = True
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """What comes from below, in its order, as leaves that gradients reach; and the labels that came along."""
    if not segment.below:
        return [], None
    came: list[torch.Tensor] = []
    labels: torch.Tensor | None = None
    for party, shape in segment.below.items():
        if labelled:
            told = await at.recv(party, LabelledSmashed)
            h, labels = told.h, to_torch(told.labels)
        else:
            h = (await at.recv(party, Smashed)).h
        came.append(from_wire(h, shape, rows).requires_grad_(training))
    return came, labels


async def _answer(at: Party, segment: Segment, came: Sequence[torch.Tensor]) -> None:
    """To each that sent from below, the gradient there; zeros where what it sent had no effect."""
    for party, h in zip(segment.below, came, strict=True):
        await at.send(party, CutGradient(g=to_wire(torch.zeros_like(h) if h.grad is None else h.grad)))


def _smashed(h: torch.Tensor, y: torch.Tensor | None) -> Message:
    return Smashed(h=to_wire(h)) if y is None else LabelledSmashed(h=to_wire(h), labels=y.numpy())
