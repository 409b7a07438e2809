"""One exchange at a cut: wherever a network is cut, over however many parties, it trains as if whole."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from protocols.errors import ProtocolError
from protocols.federation import simulate
from protocols.learning.cut import Segment, Trainer, exchange, forward
from protocols.learning.training import Settings, evaluated
from protocols.party import Coordinator
from protocols.randomness import torch_seeded

SETTINGS = Settings(epochs=1, batch_size=16, learning_rate=0.01)
WIDTHS = {0: 5, 2: 8, 4: 7, 6: 6}  # numbers of a row at each place where the network can be cut
X = torch.randn(64, 5, generator=torch.Generator().manual_seed(1))
Y = torch.arange(64) % 2

Chain = list[tuple[str, int, int]]  # party, first layer, the one after its last


def network() -> nn.Sequential:
    with torch_seeded(0):
        lower = (nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh())
        return nn.Sequential(*lower, nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 2))


def segments(whole: nn.Sequential, chain: Chain) -> dict[str, list[Segment]]:
    """Labels travel with the rows unless who has them computes the loss too."""
    found: dict[str, list[Segment]] = {}
    labels = chain[0][0] != chain[-1][0]
    for k, (party, first, last) in enumerate(chain):
        below = {chain[k - 1][0]: (WIDTHS[first],)} if k else {}
        above = chain[k + 1][0] if k + 1 < len(chain) else None
        found.setdefault(party, []).append(Segment(whole[first:last], below, above, labels=labels))
    return found


CHAINS: list[Chain] = [
    [("client", 0, 2), ("server", 2, 7)],
    [("client", 0, 4), ("server", 4, 6), ("client", 6, 7)],
    [("client", 0, 2), ("edge", 2, 4), ("server", 4, 7)],
    [("client", 0, 2), ("edge", 2, 4), ("server", 4, 6), ("client", 6, 7)],
]


@pytest.mark.parametrize("chain", CHAINS, ids=["vanilla", "U", "edge", "U over an edge"])
def test_a_chain_trains_and_predicts_as_the_whole_network_bit_for_bit(chain: Chain) -> None:
    plain = network()
    trainer = Trainer(SETTINGS, plain)
    for i in range(0, 64, 16):
        trainer.learn(plain, [X[i : i + 16]], Y[i : i + 16], True)

    cut = network()
    held = segments(cut, chain)

    async def role(me: Coordinator) -> torch.Tensor | None:
        mine, first = held[me.name], me.name == "client"
        own = Trainer(SETTINGS, nn.ModuleList([segment.module for segment in mine]))
        async with me.within("fit") as at:
            draws = at.rng("layers")
            for i in range(0, 64, 16):
                batch = (X[i : i + 16], Y[i : i + 16]) if first else ()
                await exchange(at, mine, own, draws, *batch)
        async with me.within("predict") as at:
            z = await forward(at, mine, X if first else None, 64)
        return None if z is None else torch.from_numpy(z)

    results = simulate(dict.fromkeys(held, role)).results
    for a, b in zip(plain.parameters(), cut.parameters(), strict=True):
        assert torch.equal(a, b)
    (z,) = [z for z in results.values() if z is not None]
    assert torch.equal(z, torch.from_numpy(evaluated(plain, X)))


def test_several_below_are_joined_and_each_gets_its_own_gradient() -> None:
    with torch_seeded(0):
        bottoms = {name: nn.Linear(2, 3) for name in "ab"}
        top = nn.Bilinear(3, 3, 2)  # which takes two inputs
    before = {name: bottom.weight.detach().clone() for name, bottom in bottoms.items()}

    async def below(me: Coordinator) -> None:
        trainer = Trainer(SETTINGS, bottoms[me.name])
        async with me.within("fit") as at:
            columns = X[:16, :2] if me.name == "a" else X[:16, 2:4]
            await exchange(at, [Segment(bottoms[me.name], above="top")], trainer, at.rng(), columns)

    async def above(me: Coordinator) -> None:
        mine = [Segment(top, dict.fromkeys("ab", (3,)))]
        async with me.within("fit") as at:
            await exchange(at, mine, Trainer(SETTINGS, top), at.rng(), y=Y[:16])

    simulate({"a": below, "b": below, "top": above})
    assert all(not torch.equal(bottoms[name].weight, before[name]) for name in "ab")


def test_rows_of_another_width_or_number_are_refused() -> None:
    async def client(me: Coordinator, rows: int) -> None:
        layers = nn.Linear(5, 3)
        async with me.within("fit") as at:
            await exchange(
                at, [Segment(layers, above="server")], Trainer(SETTINGS, layers), at.rng(), X[:rows]
            )

    async def server(me: Coordinator, width: int) -> None:
        layers = nn.Linear(width, 2)
        mine = [Segment(layers, {"client": (width,)})]
        async with me.within("fit") as at:
            await exchange(at, mine, Trainer(SETTINGS, layers), at.rng(), y=Y[:16])

    with pytest.raises(ProtocolError, match="expected 16 rows of 4 numbers at the cut, got 16 of 3"):
        simulate({"client": partial(client, rows=16), "server": partial(server, width=4)})
    with pytest.raises(ProtocolError, match="expected 16 rows of 3 numbers at the cut, got 9 of 3"):
        simulate({"client": partial(client, rows=9), "server": partial(server, width=3)})
