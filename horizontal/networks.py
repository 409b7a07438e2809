"""The network that all parties of a run train, each for itself: a registered one, or the caller's own.

No line is involved. All parties build a network of one shape, and start from the server's weights, which it
sends; over a network that is possible only for one that has a name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from protocols.data.tables import Kind
from protocols.errors import ConfigError
from protocols.learning.networks import network
from protocols.learning.training import outputs
from protocols.randomness import torch_seeded

Network = Callable[[int, int], nn.Module]  # (feature columns, outputs) -> a new module


def named(name: str, hidden: Sequence[int], kind: Kind, seed: int) -> Network:
    """A function that builds the registered network `name`."""

    def build(inputs: int, wanted: int) -> nn.Module:
        module = network(name, inputs, wanted, hidden, seed)
        if name != "mlp":  # whose shape is known
            _check_outputs(_shape(module, inputs), wanted, kind)
        return module

    return build


def brought(model: nn.Module, kind: Kind, seed: int) -> Network:
    """A function that copies the caller's `model`, once its width is seen to fit."""

    def build(inputs: int, wanted: int) -> nn.Module:
        module, shape = _prototype(model, inputs, seed)
        _check_outputs(shape, wanted, kind)
        return module

    return build


def check_inputs(model: nn.Module, inputs: int) -> None:
    """ConfigError if `model` does not take (n, inputs) float32, or gives no (n, k)."""
    _prototype(model, inputs, 0)


def _prototype(model: nn.Module, inputs: int, seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A copy, lazy layers drawn from `seed`, and the shape of what it makes of two rows."""
    module = copy.deepcopy(model)
    with torch_seeded(seed):
        return module, _shape(module, inputs)


def _shape(module: nn.Module, inputs: int) -> tuple[int, ...]:
    try:
        shape = outputs(module, torch.zeros(2, inputs)).shape
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(f"model does not take float32 rows of {inputs} features: {error}") from error
    if len(shape) != 2 or shape[0] != 2:
        raise ConfigError(f"model gives outputs of shape {shape} for 2 rows, expected (2, outputs)")
    return shape


def _check_outputs(shape: tuple[int, ...], wanted: int, kind: Kind) -> None:
    if shape[1] != wanted:
        each = "one for each class" if kind == "classification" else "a number"
        raise ConfigError(f"model gives {shape[1]} outputs for a row, expected {wanted}: {each}")
