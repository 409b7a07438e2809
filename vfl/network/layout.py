"""Which party holds which model of a vertical network, and how wide its embedding is.

Takes part: the label party and the feature parties, once before training. A feature party tells how many
columns it has, and how wide its embedding is if it brings its own bottom model; the label party answers how
wide it is to be, from which one can tell what part of all columns one has. Semi-honest parties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from protocols.errors import ConfigError
from protocols.flops import copied
from protocols.learning.networks import check_tensors, mlp
from protocols.party import Coordinator, Party
from protocols.randomness import drawn_seed
from protocols.wire.message import Message

Positive = Annotated[int, Field(ge=1, strict=True)]


class Columns(
    Message, reveals="how many feature columns it has, and its embedding's width if it brings its own model"
):
    """A feature party's part in laying out the network."""

    count: Positive
    width: Positive | None


class Width(Message, reveals="how wide the receiver's embedding is to be: its share of all parties' columns"):
    """The label party's answer to `Columns`."""

    width: Positive


async def ask_width(me: Party, label_party: str, columns: int, bottom: nn.Module | None) -> nn.Module:
    """A feature party's end: its bottom model, by default one as wide as the label party says."""
    own = None if bottom is None else embedding_width(bottom, columns)
    await me.send(label_party, Columns(count=columns, width=own))
    width = (await me.recv(label_party, Width)).width
    return default_bottom(columns, width, seed_of(me, "bottom")) if bottom is None else bottom


async def lay_out(
    me: Coordinator, peers: Sequence[str], columns: int, bottom: nn.Module | None, total: int
) -> tuple[nn.Module | None, dict[str, int]]:
    """The label party's end: its bottom model, if it has `columns`, and the width of each embedding.

    total: the width of all embeddings, if nobody brings a model. Returns widths by party: its own, if
    any, then those of `peers` in order.
    """
    said = await me.gather(Columns, of=peers)
    counts = {me.name: columns} if columns else {}
    counts |= {peer: message.count for peer, message in said.items()}
    own = None if bottom is None else embedding_width(bottom, columns)
    widths = {me.name: own} | {peer: message.width for peer, message in said.items()}
    brought = {party: width for party in counts if (width := widths[party]) is not None}
    divided = brought if len(brought) == len(counts) else shares(total, counts) | brought
    for peer in peers:
        await me.send(peer, Width(width=divided[peer]))
    if columns and bottom is None:
        bottom = default_bottom(columns, divided[me.name], seed_of(me, "bottom"))
    return bottom, divided


def default_bottom(columns: int, width: int, seed: int = 0) -> nn.Sequential:
    """One linear layer and ReLU: the share of a network's first layer that one party computes."""
    return nn.Sequential(*mlp(columns, width, (), seed), nn.ReLU())


def shares(total: int, columns: Mapping[str, int]) -> dict[str, int]:
    """`total` units divided by numbers of columns: one each, the rest by largest remainder.

    Raises ConfigError where there are more parties than units.
    """
    rest, every = total - len(columns), sum(columns.values())
    if rest < 0:
        raise ConfigError(
            f"hidden[0] = {total} units cannot be divided among {len(columns)} parties; raise hidden[0]"
        )
    units = {party: 1 + rest * count // every for party, count in columns.items()}
    by_remainder = sorted(columns, key=lambda party: -(rest * columns[party] % every))  # ties: given order
    for party in by_remainder[: total - sum(units.values())]:
        units[party] += 1
    return units


def embedding_width(module: nn.Module, columns: int) -> int:
    """How many numbers a row `module` makes of `columns`, float32 (b, columns) to float32 (b, width).

    Raises ConfigError for a module that does anything else, or has no weights to train.
    """
    h = _dry_run(module, columns, "the bottom model")
    if h.dim() != 2 or len(h) != 2 or not h.shape[1] or h.dtype != torch.float32:
        raise ConfigError(
            f"the bottom model makes {h.dtype} {tuple(h.shape)} of 2 rows of {columns} columns, "
            "expected float32 (2, width)"
        )
    if not any(p.requires_grad for p in module.parameters()):
        raise ConfigError(
            "the bottom model has no weights to train; what leaves would be nearly the features"
        )
    return h.shape[1]


def check_top(module: nn.Module, width: int, count: int) -> None:
    """ConfigError unless `module` makes `count` outputs of embeddings that are `width` wide together."""
    y = _dry_run(module, width, "the top model")
    if tuple(y.shape) != (2, count):
        raise ConfigError(
            f"the top model makes {tuple(y.shape)} of 2 rows, expected (2, {count}): one output per class, "
            "or one for regression"
        )
    if not any(p.requires_grad for p in module.parameters()):
        raise ConfigError("the top model has no weights to train")


def seed_of(me: Party, purpose: str) -> int:
    """A seed of this party's own for the weights of a network."""
    return drawn_seed(me.rng(purpose))


def _dry_run(module: nn.Module, width: int, what: str) -> torch.Tensor:
    check_tensors(module)
    twin = copied(module).eval()
    try:
        with torch.no_grad():
            result = twin(torch.zeros(2, width, dtype=torch.float32, device="cpu"))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ConfigError(
            f"{what} fails on 2 rows of {width} numbers, all zeros in float32, with {reason}"
        ) from None
    if not isinstance(result, torch.Tensor):
        raise ConfigError(f"{what} returns a {type(result).__name__}, expected a tensor")
    return result
