"""One network, cut into the consecutive layers that client and server hold.

No line is involved: both sides know the whole architecture and the cut beforehand, build a network of it and
keep only their own layers. Over a network each draws its weights by itself, since whoever knows the layers
behind smashed data can solve for the rows; the clients after the first take over the first one's. A network
that was brought, in one process, is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import nn

from protocols.errors import ConfigError
from protocols.flops import copied
from protocols.learning.networks import check_tensors, dry_run
from protocols.settings import plain


@dataclass(frozen=True)
class Layers:
    """Consecutive layers that one party holds."""

    module: nn.Sequential
    inputs: tuple[int, ...]  # shape of what one row brings to them
    random: bool  # whether training draws random numbers, as dropout does


def divide(whole: nn.Sequential, cut: Sequence[int], columns: int, outputs: int) -> tuple[Layers, ...]:
    """Copies of the layers of `whole` between the cuts, in order, for rows of so many columns.

    ConfigError for a cut outside the network, or a network that does not fit columns or outputs.
    """
    check_cut(cut, len(whole))
    ends = (0, *cut, len(whole))
    modules = [cast(nn.Sequential, whole[start:stop]) for start, stop in pairwise(ends)]
    _check_separate(modules)
    return _inspect([copied(module) for module in modules], columns, outputs)


def cut_positions(cut: object) -> tuple[int, ...]:
    """`2` -> `(2,)`, `(2, 4)` -> `(2, 4)`; ConfigError for anything else."""
    positions: tuple[int, ...] = plain(tuple(cut) if isinstance(cut, tuple | list) else (cut,))
    if len(positions) not in (1, 2) or not all(type(position) is int for position in positions):
        raise ConfigError(f"cut={cut!r} should be a number of layers, or two such numbers for U-shaped")
    return positions


def check_cut(cut: Sequence[int], layers: int) -> None:
    """ConfigError unless every party holds a layer of a network of so many."""
    if len(cut) == 1 and not 1 <= cut[0] <= layers - 1:
        fits = f"from 1 to {layers - 1}" if layers > 1 else "none"
        raise ConfigError(f"cut={cut[0]} lies outside a model of {layers} layers; valid cuts: {fits}")
    if len(cut) == 2 and not 1 <= cut[0] < cut[1] <= layers - 1:
        fits = f"1 <= first < second <= {layers - 1}" if layers > 2 else "none"
        raise ConfigError(f"cut={tuple(cut)} does not fit a model of {layers} layers; valid cuts: {fits}")


def _check_separate(modules: Sequence[nn.Module]) -> None:
    seen: set[int] = set()
    for module in modules:
        own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
        if own & seen:
            raise ConfigError("layers on both sides of the cut share weights; cut elsewhere or untie them")
        seen |= own


def _inspect(modules: Sequence[nn.Sequential], columns: int, outputs: int) -> tuple[Layers, ...]:
    """What goes in at each cut, and which parts are random: found by sending two rows of zeros through."""
    layers: list[Layers] = []
    x = torch.zeros(2, columns, dtype=torch.float32, device="cpu")
    for module in modules:
        check_tensors(module)
        for inner in module.modules():
            if getattr(inner, "inplace", False):
                inner.inplace = False  # type: ignore[assignment]  # it may not write on a tensor whose gradient goes back
        inputs = tuple(x.shape[1:])
        try:
            x, random = dry_run(module, x)
        except Exception as error:
            raise ConfigError(
                f"the model fails on 2 rows of {columns} columns, all zeros in float32, with "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(x, torch.Tensor) or x.dtype != torch.float32 or x.shape[:1] != (2,):
            raise ConfigError("the model should give one float32 tensor at the cut, a row for each row")
        layers.append(Layers(module.train(), inputs, random))
    if x.shape != (2, outputs):
        raise ConfigError(
            f"the model's output for one row has shape {tuple(x.shape[1:])}, expected ({outputs},): "
            "one number per class, or one for regression"
        )
    return tuple(layers)
