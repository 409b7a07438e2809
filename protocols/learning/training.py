"""The plain training loop that every paradigm shares, so that they differ in nothing else.

No line is involved. What a role trains with is a frozen `Settings`, the same for all methods of a
comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from math import inf
from typing import Any, Literal, Self, TypeGuard

import numpy as np
import torch
from torch import nn

from protocols.arrays import Array, Arrays, to_torch
from protocols.data.tables import Kind
from protocols.errors import ConfigError, DataError
from protocols.flops import forward_flops, training_flops

MOST_WEIGHTS = 1 << 26  # of a network that is built by name, perhaps for a peer: 256 MB

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """How a network is trained."""

    kind: Kind = "classification"
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0  # of sgd
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("classification", "regression"):
            raise ConfigError(f"kind={self.kind!r} should be 'classification' or 'regression'")
        for name in ("epochs", "batch_size"):
            check_count(name, getattr(self, name))
        if not _is_number(self.learning_rate) or not 0 < self.learning_rate < inf:
            raise ConfigError(f"learning_rate={self.learning_rate!r} should be a number above 0")
        for name in ("momentum", "weight_decay"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < inf:
                raise ConfigError(f"{name}={value!r} should be a number, at least 0")
        if self.optimizer not in ("adam", "sgd"):
            raise ConfigError(f"optimizer={self.optimizer!r} should be 'adam' or 'sgd'")

    @classmethod
    def of(cls, estimator: object, kind: Kind, epochs: int) -> Self:
        """The settings that an estimator has as parameters of the same names."""
        return cls(kind, epochs, *(getattr(estimator, name) for name in cls._parameters()))

    def parameters(self) -> dict[str, Any]:
        """These settings as an estimator's parameters: all but what it learns, and for how long."""
        return {name: getattr(self, name) for name in self._parameters()}

    @classmethod
    def _parameters(cls) -> list[str]:
        return [field.name for field in fields(cls) if field.name not in ("kind", "epochs")]

    @property
    def loss(self) -> Loss:
        """Mean cross-entropy of (b, classes) against int64 (b,), or mean squared error of (b, 1)."""
        return nn.functional.cross_entropy if self.kind == "classification" else nn.functional.mse_loss

    def new_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimizer; the fused kernels give the same bits wherever they run one thread."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, self.learning_rate, self.momentum, weight_decay=self.weight_decay, fused=True
            )
        return torch.optim.Adam(parameters, self.learning_rate, weight_decay=self.weight_decay, fused=True)


def load_optimizers() -> None:
    """Import what torch imports with its first optimizer, for seconds.

    Called where a program is prepared, in a thread, since roles make theirs on their party's loop, which has
    others to serve.
    """
    torch.optim.SGD([nn.Parameter(torch.zeros(1))])


def check_count(name: str, value: object) -> None:
    """ConfigError unless the setting `name` is a whole number above 0."""
    if not _is_whole(value) or value < 1:
        raise ConfigError(f"{name}={value!r} should be a whole number above 0")


def check_network(hidden: object, standardise: object, random_state: object = 0) -> None:
    """ConfigError for parameters that all estimators of networks have, and that cannot be meant."""
    widths = hidden if isinstance(hidden, Sequence) and not isinstance(hidden, str) else [None]
    if not all(_is_whole(width) and width > 0 for width in widths):
        raise ConfigError(f"hidden={hidden!r} should be a list of whole numbers above 0, as in (64, 32)")
    weights = sum(a * b for a, b in pairwise(widths))
    if weights > MOST_WEIGHTS:
        raise ConfigError(
            f"hidden={hidden!r} has {weights} weights; at most {MOST_WEIGHTS} are built by name"
        )
    if not isinstance(standardise, bool | np.bool):
        raise ConfigError(f"standardise={standardise!r} should be True or False")
    if not _is_whole(random_state) or not 0 <= random_state < 2**63:
        raise ConfigError(f"random_state={random_state!r} should be a whole number in [0, 2**63)")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, float | np.floating) or _is_whole(value)


def batches(rows: int, size: int, rng: np.random.Generator) -> Iterator[Array]:
    """One epoch of row positions in random order, int64, `size` at a time; the last may be smaller."""
    order = rng.permutation(rows)
    for start in range(0, rows, size):
        yield order[start : start + size]


@contextmanager
def in_batch(rows: int) -> Iterator[None]:
    """Within, a module trains on so many rows: DataError with the cure where it cannot train on one alone."""
    try:
        yield
    except ValueError as error:
        if rows != 1:
            raise
        raise DataError(
            f"the model cannot train on a batch of 1 row ({type(error).__name__}: {error}); choose another "
            "batch_size, so that no row is left over alone"
        ) from error


def train(
    module: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    settings: Settings,
    rng: np.random.Generator,
    *,
    epochs: int = 1,
    optimizer: torch.optim.Optimizer | None = None,
) -> float:
    """`epochs` passes over (x, y), in place; the mean loss of the last. By default with a fresh optimizer."""
    optimizer = optimizer or settings.new_optimizer(module.parameters())
    module.train()
    loss = settings.loss
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        for rows in batches(len(x), settings.batch_size, rng):
            index = torch.from_numpy(rows)
            optimizer.zero_grad()
            with in_batch(len(rows)):
                value = loss(module(x[index]), y[index])
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(value.detach()) * len(rows)
    return total / len(x)


def epoch_flops(module: nn.Module, shape: tuple[int, ...], batch_size: int) -> float:
    """FLOPs of one epoch over rows of `shape` = (n, ...): the full batches and the smaller last one."""
    full, last = divmod(shape[0], batch_size)
    total = full * training_flops(module, (batch_size, *shape[1:])) if full else 0.0
    return total + (training_flops(module, (last, *shape[1:])) if last else 0.0)


def evaluated(module: nn.Module, *inputs: torch.Tensor) -> Array:
    """The module's outputs for one batch, in evaluation mode, no gradients; float32 (b, ...).

    Afterwards each layer is in the mode that it was in.
    """
    training = [inner for inner in module.modules() if inner.training]
    module.eval()
    try:
        with torch.no_grad():
            result: Array = module(*inputs).numpy()
    finally:
        for inner in training:
            inner.training = True
    return result


def outputs(module: nn.Module, x: torch.Tensor, batch_size: int = 4096) -> Array:
    """The module's outputs for every row, as `evaluated`; float32 (n, outputs)."""
    starts = range(0, len(x), batch_size)
    return np.concatenate([evaluated(module, x[i : i + batch_size]) for i in starts])


def outputs_flops(module: nn.Module, shape: tuple[int, ...], batch_size: int = 4096) -> float:
    """FLOPs of `outputs`."""
    full, last = divmod(shape[0], batch_size)
    total = full * forward_flops(module, (batch_size, *shape[1:])) if full else 0.0
    return total + (forward_flops(module, (last, *shape[1:])) if last else 0.0)


def optimizer_arrays(optimizer: torch.optim.Optimizer) -> Arrays:
    """A copy of an optimizer's state: "<parameter's position>.<name>" -> array."""
    return Arrays(
        (f"{position}.{name}", value.detach().numpy().copy())
        for position, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    )


def load_optimizer(optimizer: torch.optim.Optimizer, arrays: Arrays) -> None:
    """Write what `optimizer_arrays` made into `optimizer`. DataError if it fits no parameter there."""
    shapes = {str(i): tuple(p.shape) for i, p in enumerate(optimizer.param_groups[0]["params"])}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, array in arrays.items():
        position, _, key = name.partition(".")
        if position not in shapes or array.shape not in ((), shapes[position]):
            raise DataError(f"optimizer state {name!r} fits no layer held here; same optimizer and model?")
        state.setdefault(int(position), {})[key] = to_torch(array)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def snapshot(module: nn.Module, optimizer: torch.optim.Optimizer | None) -> Arrays:
    """All that training goes on from: weights, buffers and the optimizer's state, copied."""
    arrays = {f"weights.{name}": array for name, array in Arrays.from_module(module).items()}
    held = {} if optimizer is None else dict(optimizer_arrays(optimizer).items())
    return Arrays(arrays | {f"optimizer.{name}": array for name, array in held.items()})


def restore(state: Arrays, module: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Write a `snapshot` into the same kind of module and optimizer. DataError if it does not fit."""
    below = {
        part: Arrays((name.removeprefix(part), a) for name, a in state.items() if name.startswith(part))
        for part in ("weights.", "optimizer.")
    }
    below["weights."].load_into(module)
    if optimizer is not None:
        load_optimizer(optimizer, below["optimizer."])


def probabilities(logits: Array) -> Array:
    """Softmax over the last axis, float64 (n, classes)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    result: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return result
