"""FedAvg and FedSGD as a program: what a job says to all parties, and what each makes of its own seat.

Takes part: the party named "server", which has no table, and every other party as a client. All are told
`FedAvg`; who learns what from the run is told in `horizontal.rounds`. Predicting is no job: every party holds
the whole model.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from torch import nn

from horizontal import part as storage
from horizontal.local import LocalRule, fedavg, fedsgd
from horizontal.rounds import Model, Recipe, Skip, Trained, Update, client, server
from horizontal.sampling import check_fraction
from protocols.data.tables import Classes, Kind, Moments, Scaling
from protocols.errors import ConfigError
from protocols.learning.clients import SERVER, Columns, read_client, row_clients
from protocols.learning.networks import Network, Registered, brought, check_inputs, named
from protocols.learning.training import Settings, check_count, check_network
from protocols.parts import Part
from protocols.party import Role
from protocols.programs import Parameters, Program, Seat

METHODS = {"classification": "horizontal.FedClassifier", "regression": "horizontal.FedRegressor"}


class FedAvg(Parameters):
    """What all parties of a run are told; as the parameters of the estimators."""

    kind: Kind
    target: str  # the label column, at every client
    model: Registered = "mlp"
    hidden: tuple[int, ...] = (64, 32)
    rounds: int = 20
    local_epochs: int = 1
    fraction: float = 1.0
    algorithm: Literal["fedavg", "fedsgd"] = "fedavg"
    batch_size: int = 32
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    standardise: bool = True

    def network(self, module: nn.Module | None, seed: int) -> Network:
        """How every party builds the network: a copy of `module`, or by name if there is none."""
        if module is None:
            return named(self.model, self.hidden, self.kind, seed)
        return brought(module, self.kind, seed)

    def recipe(self, module: nn.Module | None, seed: int) -> Recipe:
        """The same, for the roles. ConfigError for settings that cannot be meant."""
        check_network(self.hidden, self.standardise)
        return Recipe(
            *(self.network(module, seed), local_rule(self, self.kind)),
            rounds=self.rounds,
            fraction=self.fraction,
            standardise=self.standardise,
        )


class Told(Protocol):
    """Whatever has the settings of the rounds: an estimator, or what came over the wire."""

    rounds: int
    local_epochs: int
    fraction: float
    algorithm: Literal["fedavg", "fedsgd"]


def local_rule(told: Told, kind: Kind) -> LocalRule:
    """What a client does in a round. ConfigError for settings that cannot be meant."""
    check_count("rounds", told.rounds)
    check_count("local_epochs", told.local_epochs)
    check_fraction(told.fraction)
    if told.algorithm not in ("fedavg", "fedsgd"):
        raise ConfigError(f"algorithm={told.algorithm!r} should be 'fedavg' or 'fedsgd'")
    if told.algorithm == "fedsgd" and told.local_epochs != 1:
        raise ConfigError(f"local_epochs={told.local_epochs}: fedsgd takes one step a round, leave it at 1")
    settings = Settings.of(told, kind, told.local_epochs)
    return fedavg(settings) if told.algorithm == "fedavg" else fedsgd(settings)


def fit(p: FedAvg, seat: Seat) -> Role:
    """A party's role in training."""
    row_clients(seat.parties)
    module = seat.modules.get("model")
    p.recipe(module, 0)  # what cannot be meant is refused before any line opens
    if seat.party == SERVER:
        return lambda me: server(me, p.recipe(module, me.desk.seed))
    rows = read_client(seat.table, p.target, seat.one_id, p.kind)
    if module is not None:
        check_inputs(module, len(rows.columns))
    return lambda me: client(me, SERVER, rows, p.recipe(module, me.desk.seed))


def keep(p: FedAvg, seat: Seat, result: Any) -> Part:
    """A party's part of a training, for its store: the whole model; of a client, with its columns' names."""
    parameters = p.model_dump(mode="json", exclude={"kind", "target"}) | {"random_state": 0}
    return storage.part_of(
        METHODS[p.kind],
        seat.party,
        result,
        parameters=parameters,
        target=p.target,
        id=seat.one_id,
        clients=row_clients(seat.parties),
    )


def recall(p: FedAvg, part: Part) -> Trained:
    """What a party kept."""
    return storage.trained_in(part)


SPEAKS = {"fit": (Columns, Moments, Scaling, Classes, Model, Skip, Update)}
program = Program(
    *("fedavg", "horizontal", FedAvg, SPEAKS, {"fit": fit}, keep, recall),
    target=lambda parameters: parameters.target,
)
