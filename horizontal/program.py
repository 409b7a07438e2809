"""FedAvg and FedSGD as a program: what a job says to all parties, and what each makes of its own seat.

Takes part: the party named "server", which has no table, and every other party as a client. All are told
`Horizontal`; who learns what from the run is told in `horizontal.rounds`. Predicting is no job: every party
holds the whole model.
"""

from __future__ import annotations

from horizontal.parameters import Horizontal
from horizontal.part import Own
from horizontal.rounds import Skip, Trained, client, server
from horizontal.rules import Model, Update
from protocols.data.tables import Classes, Moments, Scaling
from protocols.learning.clients import SERVER, Columns, read_client, row_clients
from protocols.learning.networks import check_inputs
from protocols.parts import Part
from protocols.party import Role
from protocols.programs import Program, Seat

METHODS = {"classification": "horizontal.FedClassifier", "regression": "horizontal.FedRegressor"}


def fit(p: Horizontal, seat: Seat) -> Role:
    """A party's role in training."""
    row_clients(seat.parties)
    module = seat.modules.get("model")
    p.rules()  # what cannot be meant is refused before any line opens
    p.network(module, 0)
    if seat.party == SERVER:
        return lambda me: server(me, p, module)
    rows = read_client(seat.table, p.target, seat.one_id, p.kind)
    if module is not None:
        check_inputs(module, len(rows.columns))
    return lambda me: client(me, SERVER, rows, p, module)


def owned(p: Horizontal, seat: Seat, result: Trained) -> Own:
    """What a party holds after `fit`."""
    return Own(result, p.target, row_clients(seat.parties), seat.one_id)


def keep(p: Horizontal, seat: Seat, result: Trained) -> Part:
    """A party's part of a training, for its store: the whole model; of a client, with its columns' names."""
    settings = p.model_dump(mode="json", exclude={"kind", "target"})
    return Part.of(METHODS[p.kind], seat.party, owned(p, seat, result), settings)


def recall(p: Horizontal, part: Part) -> Trained:
    """What a party kept."""
    return part.read(Own).trained


SPEAKS = {"fit": (Columns, Moments, Scaling, Classes, Model, Skip, Update)}
program = Program(
    name="fedavg",
    package="horizontal",
    parameters=Horizontal,
    speaks=SPEAKS,
    prepare={"fit": fit},
    keep=keep,
    recall=recall,
    target=lambda parameters: parameters.target,
)
