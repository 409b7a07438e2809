"""What first weights are worth to who gets embeddings: where they are known, the features; else chance.

The attack: who gets embeddings knows, or guesses, the layer that they come from. It solves the first batch
for its rows, and then takes the sender's own step, since it knows the gradients that it sent. So it follows
the layer from batch to batch, without any data, and without training anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from protocols.arrays import Array
from protocols.learning.cut import CutGradient, LabelledSmashed, Smashed
from protocols.learning.networks import mlp
from protocols.learning.training import Settings
from protocols.party import Desk, Party
from protocols.service.caller import Connected
from protocols.wire.ledger import Ledger
from protocols.wire.message import Message
from split import SplitClassifier
from tests.support.networked import POLICY
from tests.support.seeds import known_seeds
from tests.support.served import lay_out, serving
from vfl import VerticalNetClassifier
from vfl.network.layout import default_bottom, seed_of

ROWS, COLUMNS = 400, 6
TOLD = 1  # random_state, which a caller tells whom it likes
NEAR = 0.01  # standard deviations from the truth

Seen = list[tuple[str, Message]]  # "to" or "from", in order


def people() -> pd.DataFrame:
    """Standardised, and of independent columns: nothing can be guessed of one from another."""
    x = np.random.default_rng(0).normal(size=(ROWS, COLUMNS))
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return pd.DataFrame(x, columns=[f"x{i}" for i in range(COLUMNS)]).assign(
        id=[f"{i:04}" for i in range(ROWS)], y=(x.sum(axis=1) > 0).astype(int)
    )


@contextmanager
def seen_by(party: str) -> Iterator[Seen]:
    """Every message that `party` sends and receives: all that a curious one has."""
    seen: Seen = []
    send, recv = Party.send, Party.recv

    async def sending(self: Party, to: str, message: Message) -> None:
        if self.name == party:
            seen.append(("to", message))
        await send(self, to, message)

    async def receiving(self: Party, *args: Any, **more: Any) -> Any:
        message = await recv(self, *args, **more)
        if self.name == party:
            seen.append(("from", message))
        return message

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Party, "send", sending)
        patch.setattr(Party, "recv", receiving)
        yield seen


def solved(layer: nn.Sequential, seen: Seen) -> Array:
    """The rows, in the order in which they came, if `layer` (linear, ReLU) is the sender's first."""
    embeddings = [m.h for way, m in seen if way == "from" and isinstance(m, Smashed | LabelledSmashed)]
    gradients = [m.g for way, m in seen if way == "to" and isinstance(m, CutGradient)]
    optimizer = Settings().new_optimizer(layer.parameters())
    found = []
    for h, g in zip(embeddings, gradients, strict=True):
        w, b = (p.detach().numpy().astype(np.float64) for p in layer[0].parameters())
        x = [np.linalg.lstsq(w[one > 0], (one - b)[one > 0], rcond=None)[0] for one in h]
        found.append(np.array(x))
        optimizer.zero_grad()
        layer(torch.tensor(found[-1], dtype=torch.float32)).backward(torch.from_numpy(g.copy()))
        optimizer.step()
    return np.concatenate(found)


def share(found: Array) -> float:
    """Which part of all cells is found, by the rows that each found one is nearest to."""
    x = people()[[f"x{i}" for i in range(COLUMNS)]].to_numpy()
    nearest = ((found[:, None] - x[None]) ** 2).sum(axis=2).argmin(axis=1)
    return float((np.abs(found - x[nearest]) < NEAR).mean())


def vertical(folder: Path) -> tuple[nn.Sequential, Seen]:
    """What the label party saw of a feature party, at default widths, and the layer that it guesses."""
    columns = [f"x{i}" for i in range(COLUMNS)]
    tables = {"bank": people()[["id", "y"]], "shop": people()[["id", *columns]]}
    lay_out(folder, tables, POLICY)
    bank = Connected(folder / "parties.toml", "bank", tables["bank"], patience=20.0)
    with serving(folder, "shop"), bank as all_, seen_by("bank") as seen:
        VerticalNetClassifier(epochs=1, random_state=TOLD).fit(all_, target="bank.y", id="id")
    guess = Party(Desk("shop", Ledger(), TOLD), "setup")
    return default_bottom(COLUMNS, 64, seed_of(guess, "bottom")), seen


def split(folder: Path, cut: int | tuple[int, int]) -> tuple[nn.Sequential, Seen]:
    """What the server saw of a client, at default widths, and the layers that it guesses."""
    tables = {"server": None, "north": people()}
    lay_out(folder, tables, POLICY)
    north = Connected(folder / "parties.toml", "north", tables["north"], patience=20.0)
    with serving(folder, "server"), north as all_, seen_by("server") as seen:
        SplitClassifier(cut=cut, epochs=1, random_state=TOLD).fit(all_, target="y", id="id")
    return nn.Sequential(*list(mlp(COLUMNS, 2, seed=TOLD))[:2]), seen


ATTACKS: dict[str, Callable[[Path], tuple[nn.Sequential, Seen]]] = {
    "vertical": vertical,
    "split": lambda folder: split(folder, 2),
    "u-shaped": lambda folder: split(folder, (2, 4)),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("known", [True, False], ids=["all have the caller's seed", "each has its own"])
def test_who_gets_embeddings_solves_for_rows_only_with_the_senders_seed(
    attack: str, known: bool, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    with known_seeds(TOLD) if known else nullcontext():
        layer, seen = ATTACKS[attack](tmp_path)
    found = solved(layer, seen)
    assert len(found) == ROWS
    chance = share(np.random.default_rng(1).normal(size=found.shape))
    assert (share(found) > 0.95) if known else (share(found) < chance + 0.03)
