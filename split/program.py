"""Split learning as a program: what a job says to all parties, and what each makes of its own seat.

Takes part: the party named "server", which has layers and no table, and every other party as a client, in
turn order. All are told `SplitNet`; who learns what from the run is told in `split.roles`, `split.agreement`
and `split.roles`.
"""

from __future__ import annotations

from protocols.data.tables import Classes, Moments, Scaling, features
from protocols.errors import ConfigError
from protocols.learning.clients import SERVER, Columns, read_client, row_clients
from protocols.learning.cut import CutGradient, LabelledSmashed, Smashed
from protocols.learning.training import load_optimizers
from protocols.parts import Part
from protocols.party import Role
from protocols.programs import Program, Seat
from split.agreement import ClientPart, ServerPart
from split.handover import HandOver, Outputs, RowCount
from split.parameters import SplitNet
from split.part import Own, own_in
from split.roles import answer, ask, client, server

METHODS = {"classification": "SplitClassifier", "regression": "SplitRegressor"}


def fit(p: SplitNet, seat: Seat) -> Role:
    """A party's role in training."""
    clients, module = row_clients(seat.parties), seat.modules.get("model")
    p.check(module)  # what cannot be meant is refused before any line opens
    load_optimizers()
    if seat.party == SERVER:
        return lambda me: server(me, p, module, clients=clients)
    rows = read_client(seat.table, p.target, seat.one_id, p.kind)
    return lambda me: client(me, p, module, rows, clients=clients)


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


def owned(p: SplitNet, seat: Seat, result: ClientPart | ServerPart) -> Own:
    """What a party holds after `fit`."""
    return Own(result, p.target, row_clients(seat.parties), seat.one_id)


def keep(p: SplitNet, seat: Seat, result: ClientPart | ServerPart) -> Part:
    """A party's part of a training, for its store."""
    settings = p.model_dump(mode="json", exclude={"kind", "target"})
    return Part.of(METHODS[p.kind], seat.party, owned(p, seat, result), settings)


def recall(p: SplitNet, part: Part) -> ClientPart | ServerPart:
    """What a party kept, in the layers that it was trained in, whatever `p` says of them."""
    trained = {name: value for name, value in part.settings.items() if name in SplitNet.model_fields}
    told_then = program.read({**p.model_dump(mode="json"), **trained})
    told_then.check(None)
    return own_in(part, told_then, None).part


SPEAKS = {
    "fit": (Columns, RowCount, Moments, Scaling, Classes, Smashed, LabelledSmashed, CutGradient, HandOver),
    "predict": (RowCount, Smashed, Outputs),
}
program = Program(
    name="split-net",
    package="split",
    parameters=SplitNet,
    speaks=SPEAKS,
    prepare={"fit": fit, "predict": predict},
    keep=keep,
    recall=recall,
    target=lambda parameters: parameters.target,
)
