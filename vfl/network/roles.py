"""The vertical network: a bottom model at each party, the top model at the label party.

Takes part: one label party, which may have features too, and one or more feature parties. After alignment
each party puts its own columns through its bottom model; the label party joins the embeddings, its own
first, and trains the top model on them; each feature party gets the gradient of its own embedding.

Who learns what:
- The label party learns the embedding of every common row at every step, from which features can be
  reconstructed: He, Zhang and Lee 2019 (model inversion in collaborative inference); Luo et al. 2021
  (feature inference from what a vertical model predicts).
- A feature party learns the gradients of its embeddings, which tell labels apart: Li et al. 2022 (Marvell).
  It is told no label and no other party's embedding.
- Everybody learns which of its rows are common (`vfl.align`), how they compare in number of columns
  (`vfl.network.layout`), and in which order an epoch visits the rows.

Semi-honest parties. No defence is applied here: what gradients and embeddings give away, they do.
Vepakomma et al. 2018, "Split learning for health": the configuration for vertically partitioned data.

The label party sends the order of every epoch instead of a seed. Parties whose generators differ (another
numpy) would train on rows that do not belong together, and nothing would show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import nn

from protocols.arrays import Array
from protocols.data.tables import Scaler, encode_labels, features, labels
from protocols.errors import DataError, marked
from protocols.flops import training_flops
from protocols.learning.cut import Segment, Trainer, exchange, forward
from protocols.learning.networks import dry_run, mlp
from protocols.learning.training import outputs, outputs_flops
from protocols.party import Coordinator, Party
from protocols.psi.choose import Protocol
from protocols.psi.ids import CanonicalIds
from vfl.alignment.roles import Aligned, align_feature, align_label
from vfl.network.layout import ask_width, check_top, lay_out, seed_of
from vfl.network.parameters import VerticalNet
from vfl.order import Order, positions

CHUNK = 4096  # rows that one message carries when predicting
Classes = list[bool | int | str]


@dataclass(frozen=True)
class Table:
    """What a party brings: ids and features, row for row."""

    ids: CanonicalIds
    x: Array = field(repr=False)  # (n, d) float64


@dataclass(frozen=True)
class Bottom:
    """What a party learns about its own columns."""

    scaler: Scaler
    module: nn.Module = field(repr=False)  # (b, d) -> (b, k)

    def __call__(self, x: Array) -> Array:
        """The embeddings (n, k) of `x` (n, d), float32."""
        return outputs(self.module, torch.from_numpy(self.scaler(x)), CHUNK)

    def flops(self, rows: int, columns: int) -> float:
        """FLOPs of the embeddings of so many rows: the module's, and two a cell for scaling."""
        return outputs_flops(self.module, (rows, columns), CHUNK) + 2.0 * rows * columns


@dataclass(frozen=True)
class Top:
    """What the label party alone learns."""

    module: nn.Module = field(repr=False)  # (b, its own width and all peers') -> (b, outputs)
    widths: Mapping[str, int]  # feature party -> width of its embedding, in the order they are joined
    classes: Classes | None  # of classification
    scaler: Scaler | None  # of a regression target


async def feature_party(
    me: Party, label_party: str, table: Table, bottom: nn.Module | None, plan: VerticalNet
) -> tuple[Bottom, Aligned]:
    """Align, then train this party's bottom model."""
    async with me.within("align") as at:
        peers = _features(me, label_party)
        aligned = await align_feature(at, label_party, peers, table.ids, protocol=plan.protocol)
    scaler, x = await _standardised(me, table.x[aligned.rows], plan)
    async with me.within("setup") as at:
        bottom = await ask_width(at, label_party, x.shape[1], bottom)
    trainer = Trainer(plan.settings, bottom)
    mine = [Segment(bottom, above=label_party, random=_draws(bottom, x.shape[1]))]
    for step in me.steps(plan.epochs, trainer):
        async with step as at:
            order = positions(await at.recv(label_party, Order), len(x), label_party)
            draws = at.rng("dropout")
            for rows in _batches(order, plan.batch_size):
                await exchange(at, mine, trainer, draws, x[rows])
    return Bottom(scaler, bottom.eval()), aligned


async def label_party(
    me: Coordinator,
    peers: Sequence[str],
    table: Table,
    target: pd.Series,
    bottom: nn.Module | None,
    top: nn.Module | None,
    plan: VerticalNet,
) -> tuple[Bottom | None, Top, Aligned]:
    """Align, then train the top model, and this party's bottom model if it has columns."""
    async with me.within("align") as at:
        aligned = await align_label(at, peers, table.ids, protocol=plan.protocol)
    scaler, x = await _standardised(me, table.x[aligned.rows], plan)
    with marked(me.name, "setup"):
        y, classes, target_scaler = _target(target.iloc[aligned.rows], plan)
    async with me.within("setup") as at:
        bottom, widths = await lay_out(at, peers, x.shape[1], bottom, plan.hidden[0])
        total, count = sum(widths.values()), len(classes) if classes else 1
        if top is None:
            top = mlp(total, count, plan.hidden[1:], seed_of(at, "top"))
        check_top(top, total, count)
    whole = _Joined(bottom, top, total)
    trainer = Trainer(plan.settings, whole)
    random = _draws(top, total) or (bottom is not None and _draws(bottom, x.shape[1]))
    mine = [_segment(whole, peers, widths, random)]
    for step in me.steps(plan.epochs, trainer, progress="epochs"):
        async with step as at:
            order = at.rng("batches").permutation(len(x))
            await at.broadcast(Order(rows=order.astype(np.uint32)), to=peers)
            draws = at.rng("dropout")
            for rows in _batches(order, plan.batch_size):
                await exchange(at, mine, trainer, draws, x[rows], y[rows])
    fitted = None if bottom is None else Bottom(scaler, bottom.eval())
    return fitted, Top(top.eval(), {peer: widths[peer] for peer in peers}, classes, target_scaler), aligned


def _features(me: Party, label_party: str) -> list[str]:
    """All feature parties, this one among them."""
    return [party for party in me.desk.parties if party != label_party]


async def predict_feature(
    me: Party, label_party: str, table: Table, bottom: Bottom, protocol: Protocol = "auto"
) -> Aligned:
    """Align, then send the embeddings of the common rows."""
    async with me.within("align") as at:
        peers = _features(me, label_party)
        aligned = await align_feature(at, label_party, peers, table.ids, protocol=protocol)
    mine = [Segment(bottom.module, above=label_party)]
    async with me.within("predict") as at:
        for rows in _batches(aligned.rows, CHUNK):
            await forward(at, mine, await _scaled(at, bottom, table.x[rows]))
    return aligned


async def predict_label(
    me: Coordinator,
    table: Table,
    bottom: Bottom | None,
    top: Top,
    protocol: Protocol = "auto",
    *,
    may_be_empty: bool,
) -> tuple[Array, Aligned]:
    """Align, then the top model's outputs (k, outputs) float32 for the common rows, in their order."""
    peers = list(top.widths)
    async with me.within("align") as at:
        aligned = await align_label(at, peers, table.ids, protocol=protocol, may_be_empty=may_be_empty)
    done = [np.zeros((0, len(top.classes) if top.classes else 1), np.float32)]
    whole = _Joined(None if bottom is None else bottom.module, top.module, 0)  # nothing is trained
    mine = [_segment(whole, peers, top.widths)]
    async with me.within("predict") as at:
        for rows in _batches(aligned.rows, CHUNK):
            z = await forward(at, mine, await _scaled(at, bottom, table.x[rows]))
            assert z is not None
            done.append(z)
    return np.concatenate(done), aligned


class _Joined(nn.ModuleList):
    """The label party's models as one, of its own rows and then the peers' embeddings."""

    def __init__(self, bottom: nn.Module | None, top: nn.Module, width: int) -> None:
        """width: of all embeddings together."""
        super().__init__([top] if bottom is None else [bottom, top])
        self._bottom, self._width = bottom is not None, width

    def forward(self, x: torch.Tensor, *embeddings: torch.Tensor) -> torch.Tensor:
        own = [self[0](x)] if self._bottom else []
        result: torch.Tensor = self[-1](torch.cat([*own, *embeddings], dim=1))
        return result

    def training_flops(self, x: torch.Tensor, *embeddings: torch.Tensor) -> float:
        """Of one batch: gradients go back to the embeddings, and not to the rows."""
        own = training_flops(self[0], x) if self._bottom else 0.0
        return own + training_flops(self[-1], (len(x), self._width), input_gradient=True)


def _segment(
    whole: _Joined, peers: Sequence[str], widths: Mapping[str, int], random: bool = False
) -> Segment:
    below = {peer: (widths[peer],) for peer in peers}
    return Segment(whole, below, random=random, cost=whole.training_flops)


async def _scaled(at: Party, bottom: Bottom | None, x: Array) -> torch.Tensor:
    """Rows (b, d) float64 as the bottom model takes them; of no columns where there is none."""
    if bottom is None:
        return torch.zeros(len(x), 0)
    return torch.from_numpy(await at.compute(bottom.scaler, x, cost=2.0 * x.size))


async def _standardised(me: Party, x: Array, plan: VerticalNet) -> tuple[Scaler, torch.Tensor]:
    plain = Scaler(np.zeros(x.shape[1]), np.ones(x.shape[1]))
    # Mean, variance, and the scaling itself: 2 + 3 + 2 operations a cell.
    scaler = await me.compute(Scaler.fit, x, cost=5.0 * x.size) if plan.standardise else plain
    return scaler, torch.from_numpy(await me.compute(scaler, x, cost=2.0 * x.size))


def _target(values: pd.Series, plan: VerticalNet) -> tuple[torch.Tensor, Classes | None, Scaler | None]:
    """The common rows' labels as (tensor, classes, None), or numbers as (tensor, None, their scaler)."""
    if plan.kind == "classification":
        classes = labels(values)
        if len(classes) < 2:
            raise DataError(
                f"the {len(values)} common rows are all of one class; rows of another have to be shared too"
            )
        return torch.from_numpy(encode_labels(values, classes)), classes, None
    y = features(values.to_frame())
    scaler = Scaler.fit(y)
    return torch.from_numpy(scaler(y)), None, scaler


def _batches(order: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _draws(module: nn.Module, width: int) -> bool:
    """Whether training a module of `width` columns draws random numbers. Forking torch costs half a step."""
    return dry_run(module, torch.zeros(2, width))[1]
