"""Split learning as a program: what a job says to all parties, and what each makes of its own seat.

Takes part: the party named "server", which has layers and no table, and every other party as a client, in
turn order. All are told `SplitNet`; who learns what from the run is told in `split.roles`, `split.agreement`
and `split.roles`.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from torch import nn

from protocols.data.tables import Classes, Kind, Moments, Scaling, features
from protocols.errors import ConfigError
from protocols.learning.clients import SERVER, Columns, read_client, row_clients
from protocols.learning.cut import CutGradient, LabelledSmashed, Smashed
from protocols.learning.networks import Registered, network
from protocols.learning.training import Settings, check_network, load_optimizers
from protocols.parts import Part
from protocols.party import Role
from protocols.programs import Parameters, Program, Seat
from split import part as storage
from split.agreement import ClientPart, ServerPart
from split.chain import Plan, check_cut, cut_positions
from split.handover import HandOver, Outputs, RowCount
from split.part import Own
from split.roles import answer, ask, client, server

METHODS = {"classification": "SplitClassifier", "regression": "SplitRegressor"}


class SplitNet(Parameters):
    """What all parties of a run are told; as the parameters of the estimators."""

    kind: Kind
    target: str  # the label column, at every client
    model: Registered = "mlp"  # an nn.Sequential
    cut: tuple[int, ...] = (2,)  # one, or two for the U shape
    hidden: tuple[int, ...] = (64, 32)
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    standardise: bool = True

    def plan(self, module: nn.Module | None, seed: int) -> Plan:
        """The same, for the roles: with the caller's `module`, or by name if there is none.

        ConfigError for settings or a cut that cannot be meant, as far as that can be told without columns.
        """
        check_network(self.hidden, self.standardise)
        settings, cut = Settings.of(self, self.kind, self.epochs), cut_positions(self.cut)
        if module is not None:
            whole = _sequential(module)
            check_cut(cut, len(whole))
            return Plan(lambda d, k: whole, cut, settings, self.standardise)
        if self.model == "mlp":
            check_cut(cut, 2 * len(self.hidden) + 1)

        def build(columns: int, outputs: int) -> nn.Sequential:
            return _sequential(network(self.model, columns, outputs, self.hidden, seed))

        return Plan(build, cut, settings, self.standardise)


def fit(p: SplitNet, seat: Seat) -> Role:
    """A party's role in training."""
    clients, module = row_clients(seat.parties), seat.modules.get("model")
    p.plan(module, 0)  # what cannot be meant is refused before any line opens
    load_optimizers()
    if seat.party == SERVER:
        return lambda me: server(me, p.plan(module, me.desk.seed), clients=clients)
    rows = read_client(seat.table, p.target, seat.one_id, p.kind)
    return lambda me: client(me, p.plan(module, me.desk.seed), rows, clients=clients)


def predict(p: SplitNet, seat: Seat) -> Role:
    """A party's role in predicting, with the part that it kept."""
    clients = row_clients(seat.parties)
    if seat.party == SERVER:
        own: ServerPart = seat.kept
        return lambda me: answer(me, own, clients=clients)
    if seat.table is None:
        raise ConfigError("has no table; every client that takes part asks about rows of its own")
    part: ClientPart = seat.kept
    x = features(seat.table, list(part.columns))
    known = seat.one_id is not None and seat.one_id in seat.table.columns
    ids = seat.table[seat.one_id] if known else None
    return lambda me: ask(me, part, x, ids)


def keep(p: SplitNet, seat: Seat, result: Any) -> Part:
    """A party's part of a training, for its store."""
    settings = p.model_dump(mode="json", exclude={"kind", "target"}) | {"random_state": 0}
    return storage.part_of(
        *(METHODS[p.kind], seat.party, cast(Own, result)),
        settings=settings,
        target=p.target,
        id=seat.one_id,
        clients=row_clients(seat.parties),
    )


def recall(p: SplitNet, part: Part) -> Own:
    """What a party kept, in the layers that it was trained in, whatever `p` says of them."""
    told: Any = part.settings["settings"]
    trained = {name: value for name, value in told.items() if name in SplitNet.model_fields}
    return storage.own_in(part, p.model_validate(p.model_dump() | trained).plan(None, 0))


def _sequential(model: object) -> nn.Sequential:
    if type(model) is not nn.Sequential:
        raise ConfigError(f"model should be an nn.Sequential (no subclass), got {type(model).__name__}")
    return model


SPEAKS = {
    "fit": (
        *(Columns, RowCount, Moments, Scaling, Classes),
        *(Smashed, LabelledSmashed, CutGradient, HandOver),
    ),
    "predict": (RowCount, Smashed, Outputs),
}
program = Program(
    *("split-net", "split", SplitNet, SPEAKS, {"fit": fit, "predict": predict}, keep, recall),
    target=lambda parameters: parameters.target,
)
