"""Disturbed lines, failing parties, and seeds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from protocols.errors import DataError, LineError
from protocols.federation import Federation
from protocols.wire.faults import Plan as Faults
from protocols.wire.transport import Network
from split import SplitClassifier
from split.chain import cut_positions
from tests.support.split_rows import mlp5, plan, same, tables

DATA = {name: table.drop(columns="z") for name, table in tables([40, 30]).items()}
CUTS = pytest.mark.parametrize("cut", [2, (2, 4)])


def lines(model: SplitClassifier) -> dict[tuple[str, str], bytes]:
    pairs = {(e.sender, e.receiver) for e in model.ledger_.entries}
    return {pair: model.ledger_.line_digest(*pair) for pair in pairs}


def state(model: SplitClassifier) -> dict[str, torch.Tensor]:
    return {**model.client_model_.state_dict(), **model.server_model_.state_dict()}


@CUTS
def test_delayed_duplicated_and_reordered_envelopes_change_nothing(cut: int | tuple[int, int]) -> None:
    calm = SplitClassifier(mlp5(), cut, epochs=2).fit(DATA, target="y")
    storm = Federation(DATA, faults=Faults(seed=1, delay=2.0, duplicate=0.4))
    disturbed = SplitClassifier(mlp5(), cut, epochs=2).fit(storm, target="y")
    assert same(state(calm), state(disturbed))
    assert lines(calm) == lines(disturbed)


@CUTS
def test_a_network_costs_time_and_changes_nothing(cut: int | tuple[int, int]) -> None:
    calm = SplitClassifier(mlp5(), cut, epochs=1).fit(DATA, target="y")
    far = Federation(DATA, network=Network(latency=0.1, bandwidth=1e6))
    assert same(state(calm), state(SplitClassifier(mlp5(), cut, epochs=1).fit(far, target="y")))


@CUTS
def test_the_seed_gives_the_same_lines(cut: int | tuple[int, int]) -> None:
    first, again, other = (
        SplitClassifier(mlp5(), cut, epochs=1, random_state=seed).fit(DATA, target="y") for seed in (1, 1, 2)
    )
    assert lines(first) == lines(again) != lines(other)


@CUTS
@pytest.mark.filterwarnings("ignore:the FLOPs of a")
def test_a_client_that_fails_stops_all_and_is_named(cut: int | tuple[int, int]) -> None:
    # BatchNorm cannot train on the single row that is left over at client1.
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    uneven = {"client0": DATA["client0"], "client1": DATA["client1"].head(17)}
    with pytest.raises(DataError, match=r"^client1/fit/0: .*ValueError") as caught:
        SplitClassifier(model, cut, batch_size=8).fit(uneven, target="y")
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_cut_line_stops_all_and_is_named() -> None:
    dead = Federation(DATA, faults=Faults(cut=("client1", "server"), cut_after=6))
    with pytest.raises(LineError, match=r"^(client1|server)/fit/0: "):
        SplitClassifier(mlp5()).fit(dead, target="y")


def dropped() -> nn.Sequential:
    torch.manual_seed(0)
    halves = [nn.Dropout(0.5) for _ in range(3)]
    layers = (nn.Linear(5, 8), halves[0], nn.Linear(8, 8), halves[1], nn.Linear(8, 8), halves[2])
    return nn.Sequential(*layers, nn.Linear(8, 2))


@pytest.mark.parametrize("cut", [2, (2, 4)])
def test_dropout_repeats_by_seed_whatever_the_global_generator(cut: int | tuple[int, int]) -> None:
    model, states = dropped(), []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        states.append(state(SplitClassifier(model, cut, epochs=1, random_state=5).fit(DATA, target="y")))
        assert torch.equal(before, torch.get_rng_state())
    assert same(*states)
    assert not same(
        states[0], state(SplitClassifier(model, cut, epochs=1, random_state=6).fit(DATA, target="y"))
    )


@pytest.mark.parametrize(("cut", "random"), [(1, [False, True]), (2, [True, True]), (6, [True, False])])
def test_only_layers_that_draw_pay_for_a_generator(cut: int, random: list[bool]) -> None:
    layers = plan(cut_positions(cut)).layers(dropped(), 0, 5, 2)
    assert [part.random for part in layers] == random
