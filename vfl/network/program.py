"""The vertical network as a program: what a job says to all parties, and what each makes of its own seat.

Takes part: the label party and the feature parties, each for itself. Every party is told `Parameters`; who
learns what from the run is told in `vfl.align` and `vfl.network.roles`.
"""

from __future__ import annotations

from typing import Any

from protocols.data.tables import features
from protocols.errors import DataError
from protocols.flops import copied
from protocols.learning.cut import CutGradient, Smashed
from protocols.learning.training import load_optimizers
from protocols.parts import Part
from protocols.party import Role
from protocols.programs import Program, Seat
from protocols.psi.ring import InAllSize
from protocols.wire.message import Message
from vfl.alignment.roles import CAREFUL, SPOKEN, ids_of
from vfl.network.layout import Columns, Width, embedding_width
from vfl.network.parameters import VerticalNet
from vfl.network.part import Own, own_of
from vfl.network.roles import (
    Bottom,
    Table,
    Top,
    feature_party,
    label_party,
    predict_feature,
    predict_label,
)
from vfl.order import Order


def fit(p: VerticalNet, seat: Seat) -> Role:
    """A party's role in training."""
    table, name = seat.require_table(), seat.require_id()
    peers = p.peers(seat.parties)
    p.check()
    load_optimizers()
    own = {part: copied(module) for part, module in seat.modules.items()}
    bottom, top = own.get("bottom"), own.get("top")
    if seat.party == p.label_party:
        y = seat.require_target(classes=p.kind == "classification")
    columns = feature_columns(p, seat)
    if not columns and seat.party != p.label_party:
        raise DataError("no column is left beside the id; a feature party needs at least one")
    ids = ids_of(table, name, duplicates=p.duplicates, normalise=p.normalise)
    rows = Table(ids, features(table, columns))
    if bottom is not None:
        embedding_width(bottom, len(columns))
    if seat.party == p.label_party:
        return lambda me: label_party(me, peers, rows, y, bottom, top, p)
    return lambda me: feature_party(me, p.label_party, rows, bottom, p)


def predict(p: VerticalNet, seat: Seat) -> Role:
    """A party's role in predicting, with the part that it kept."""
    own: Own = seat.kept
    table = seat.require_table()
    ids = ids_of(table, own.id, duplicates=p.duplicates, normalise=p.normalise)
    rows = Table(ids, features(table, own.columns))
    if own.top is not None:
        top = own.top
        return lambda me: predict_label(me, rows, own.bottom, top, p.protocol, may_be_empty=p.may_be_empty)
    bottom = own.bottom
    assert bottom is not None  # only a label party may be without features
    return lambda me: predict_feature(me, p.label_party, rows, bottom, p.protocol)


def owned(p: VerticalNet, seat: Seat, result: Any) -> Own:
    """What a party holds after `fit`."""
    learnt: tuple[Bottom | None, Top | None] = (result[0], None)
    if seat.party == p.label_party:
        learnt = (result[0], result[1])
    target = (seat.target or "") if learnt[1] is not None else ""
    return Own(seat.require_id(), feature_columns(p, seat), learnt[0], target, learnt[1])


def feature_columns(p: VerticalNet, seat: Seat) -> list[str]:
    """The columns that a party learns from: all but the id, and the target."""
    left_out = {seat.require_id(), *([seat.target] if seat.party == p.label_party else [])}
    return [name for name in seat.require_table().columns if name not in left_out]


def keep(p: VerticalNet, seat: Seat, result: Any) -> Part:
    """A party's part of a training, for its store."""
    settings = p.model_dump(mode="json", exclude={"label_party", "kind", "may_be_empty"})
    said = settings if seat.party == p.label_party else {}
    return Part.of(METHODS[p.kind], seat.party, owned(p, seat, result), said)


def recall(p: VerticalNet, part: Part) -> Own:
    """What a party kept."""
    return own_of(part)


METHODS = {"classification": "VerticalNetClassifier", "regression": "VerticalNetRegressor"}
SPEAKS: dict[str, tuple[type[Message], ...]] = {
    "fit": (*SPOKEN, Columns, Width, Order, Smashed, CutGradient),
    "predict": (*SPOKEN, InAllSize, Smashed),
}


program = Program(
    name="vertical-net",
    package="vfl",
    parameters=VerticalNet,
    speaks=SPEAKS,
    prepare={"fit": fit, "predict": predict},
    keep=keep,
    recall=recall,
    careful=CAREFUL,
)
