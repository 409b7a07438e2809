"""Linear models as a program: what a job says to all parties, and what each makes of its own seat.

Takes part: the label party and the feature parties, each for itself. Every party is told `VerticalLinear`;
who learns what from the run is told in `vfl.align`, `vfl.linear.roles` and `vfl.linear.hidden`. A run
without encryption, or with a key that can be broken, is a program of its own, which a policy has to grant as
plain.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

from pydantic import model_validator

from protocols.data.tables import features
from protocols.errors import ConfigError, DataError
from protocols.parts import Part
from protocols.party import Role
from protocols.programs import Program, Seat
from protocols.psi.ring import InAllSize
from protocols.sums.masked import MaskPoint
from protocols.wire.message import Message
from vfl.alignment.roles import CAREFUL, SPOKEN, ids_of
from vfl.linear.gradient import MaskedGradient, OpenedGradient, SealedResiduals
from vfl.linear.messages import (
    InnerProducts,
    LinearStart,
    Move,
    PartialScores,
    ProximalStep,
    ProximalSums,
    TrialProducts,
)
from vfl.linear.parameters import VerticalLinear
from vfl.linear.part import Own
from vfl.linear.parts import Head, Linear, Table, Target
from vfl.linear.roles import feature_party, label_party, predict_feature, predict_label
from vfl.linear.shared_gradient import ShareKey
from vfl.order import Order


class Sealed(VerticalLinear):
    """The same, where what leaves is encrypted."""

    @model_validator(mode="after")
    def _is_sealed(self) -> Self:
        if self.is_plain:
            raise ValueError('security="plain" and small keys are for the program vertical-linear-plain')
        return self


def fit(p: VerticalLinear, seat: Seat) -> Role:
    """A party's role in training."""
    table, name = seat.require_table(), seat.require_id()
    peers, start = p.peers(seat.parties), seat.kept if p.warm_start else None
    if seat.party == p.label_party:
        target = Target(seat.require_target(classes=p.family == "logistic"), seat.sample_weight)
        if p.security == "hidden" and seat.sample_weight is not None:
            raise ConfigError(
                'sample_weight would have to be told to all parties with security="hidden", since each '
                'multiplies its own scores by it; use security="exact"'
            )
    columns = feature_columns(p, seat)
    if not columns and seat.party != p.label_party:
        raise DataError("no column is left beside the id; a feature party needs at least one")
    if start is not None:
        _check_parties(p, seat, start, more=True)
    if start is not None and start.columns != columns:
        raise ConfigError("the columns are not those of the training to start from; set warm_start=False")
    ids = ids_of(table, name, duplicates=p.duplicates, normalise=p.normalise)
    rows = Table(ids, features(table, columns), columns)
    if seat.party == p.label_party:
        begin = None if start is None else (start.fitted, start.head)
        return lambda me: label_party(me, peers, rows, target, begin, p)
    return lambda me: feature_party(me, p.label_party, rows, None if start is None else start.fitted, p)


def predict(p: VerticalLinear, seat: Seat) -> Role:
    """A party's role in predicting, with the part that it kept."""
    own: Own = seat.kept
    _check_parties(p, seat, own)
    table = seat.require_table()
    ids = ids_of(table, own.id, duplicates=p.duplicates, normalise=p.normalise)
    rows = Table(ids, features(table, own.columns), own.columns)
    if own.head is not None:
        head = own.head
        return lambda me: predict_label(
            me, own.peers, rows, own.fitted, head, p.protocol, may_be_empty=p.may_be_empty
        )
    return lambda me: predict_feature(me, p.label_party, rows, own.fitted, p.protocol)


def _check_parties(p: VerticalLinear, seat: Seat, own: Own, *, more: bool = False) -> None:
    """ConfigError unless coefficients are used by those who trained them; or, if `more` are no harm, by more.

    Fewer feature parties would show more of each one's scores, and another label party would see them.
    """
    given = {*p.peers(seat.parties)}
    fits = given >= {*own.peers} if more else given == {*own.peers}
    if p.label_party != own.label_party or not fits:
        raise ConfigError(
            f"the coefficients are for the label party {own.label_party} with {', '.join(own.peers)}, got "
            f"{p.label_party} with {', '.join(sorted(given))}; take the parties of the training"
            + ("; or set warm_start=False" if more else "")
        )


def owned(p: VerticalLinear, seat: Seat, result: Any) -> Own:
    """What a party holds after `fit`."""
    fitted: Linear = result[0]
    head: Head | None = result[1] if seat.party == p.label_party else None
    target = (seat.target or "") if head is not None else ""
    peers = p.peers(seat.parties)
    return Own(seat.require_id(), feature_columns(p, seat), fitted, p.label_party, peers, target, head)


def feature_columns(p: VerticalLinear, seat: Seat) -> list[str]:
    """The columns that a party learns from: all but the id, and the target."""
    left_out = {seat.require_id(), *([seat.target] if seat.party == p.label_party else [])}
    return [name for name in seat.require_table().columns if name not in left_out]


def keep(p: VerticalLinear, seat: Seat, result: Any) -> Part:
    """A party's part of a training, for its store."""
    keys = {"key_bits", "small_key", "backend"}
    told = p.model_dump(mode="json", exclude={"label_party", "family", "may_be_empty", *keys})
    settings = {**told, "encryption": p.encryption} if seat.party == p.label_party else {}
    return Part.of(METHODS[p.family], seat.party, owned(p, seat, result), settings)


def recall(p: VerticalLinear, part: Part) -> Own:
    """What a party kept."""
    return part.read(Own)


METHODS: dict[str, str] = {
    "logistic": "VerticalLogisticRegression",
    "linear": "VerticalLinearRegression",
    "poisson": "VerticalPoissonRegressor",
}
SPEAKS: dict[str, tuple[type[Message], ...]] = {
    "fit": (
        *SPOKEN,
        LinearStart,
        MaskPoint,
        PartialScores,
        Order,
        SealedResiduals,
        MaskedGradient,
        OpenedGradient,
        InnerProducts,
        Move,
        ProximalSums,
        ProximalStep,
        ShareKey,
        TrialProducts,
    ),
    "predict": (*SPOKEN, InAllSize, MaskPoint, PartialScores),
}

plain_program: Program[VerticalLinear] = Program(
    name="vertical-linear-plain",
    package="vfl",
    parameters=VerticalLinear,
    speaks=SPEAKS,
    prepare={"fit": fit, "predict": predict},
    keep=keep,
    recall=recall,
    careful=CAREFUL,
)
program = replace(plain_program, name="vertical-linear", parameters=Sealed, plain=False)
