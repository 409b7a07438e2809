"""Boosted trees as a program: what a job says to all parties, and what each makes of its own seat.

Takes part: the label party and the feature parties, each for itself. Every party is told `Boosting`; who
learns what from the run is told in `vfl.align` and `vfl.boosting`. A run without encryption, or with a key
that can be broken, is a program of its own, which a policy has to grant as plain.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

from pydantic import model_validator

from protocols.data.tables import check_rows, column
from protocols.errors import ConfigError, DataError
from protocols.hazmat.paillier import Plain
from protocols.parts import Part
from protocols.party import Role
from protocols.policy.rules import Bound
from protocols.programs import Program, Seat
from protocols.psi.ring import InAllSize
from protocols.trees.bins import check_columns, check_kinds
from protocols.wire.message import Message
from vfl.alignment.roles import CAREFUL, SPOKEN, ids_of
from vfl.boosting.feature import check_monotone, feature_party
from vfl.boosting.label import label_party
from vfl.boosting.messages import (
    Arrived,
    BinCounts,
    ClearGradients,
    ClearSums,
    Divided,
    Drawn,
    Enough,
    Outcomes,
    Reached,
    SealedGradients,
    SealedSums,
    Sides,
    TreeKey,
)
from vfl.boosting.parameters import Boosting
from vfl.boosting.part import Own
from vfl.boosting.parts import Table
from vfl.boosting.predict import predict_feature, predict_label


class SealedBoosting(Boosting):
    """The same, where gradients are encrypted under a key that cannot be broken."""

    @model_validator(mode="after")
    def _is_sealed(self) -> Self:
        if self.is_plain:
            raise ValueError("encryption='plain' and small keys are for the program vertical-boosting-plain")
        return self


def fit(p: Boosting, seat: Seat) -> Role:
    """A party's role in training."""
    table, name, peers = seat.require_table(), seat.require_id(), p.peers(seat.parties)
    before: Own | None = seat.kept if p.begin else None
    if p.begin and before is None:
        raise ConfigError("there is no model here to continue; train anew")
    if before is not None:
        _check_before(p, seat, before)
    column(table, name, "id")
    columns = table.drop(columns=name)
    if seat.party == p.label_party:
        y = seat.require_target(classes=p.kind == "classification")
        columns = columns.drop(columns=seat.target)
        if p.complete_secure and not columns.shape[1]:
            raise DataError(
                "complete_secure grows the first tree from the label party's columns; it has none"
            )
    elif not columns.shape[1]:
        raise DataError("no column is left beside the id; a feature party needs at least one")
    check_rows(table)
    check_columns(columns)
    if before is not None and before.columns != list(columns.columns):
        raise ConfigError("the columns are not those of the model that is continued; train anew")
    check_monotone(seat.monotone, columns)
    ids = ids_of(table, name, duplicates=p.duplicates, normalise=p.normalise)
    rows = Table(ids, columns, seat.monotone)
    owned = None if before is None else before.owned
    if seat.party != p.label_party:
        return lambda me: feature_party(me, p.label_party, rows, p, owned)
    learnt = None if before is None or before.learnt is None else (before.owned, before.learnt)
    return lambda me: label_party(me, peers, rows, y, seat.sample_weight, p, learnt)


def predict(p: Boosting, seat: Seat) -> Role:
    """A party's role in predicting, with the part that it kept."""
    own: Own = seat.kept
    table = seat.require_table()
    ids = ids_of(table, own.id, duplicates=p.duplicates, normalise=p.normalise)
    check_kinds(table, own.owned.bins)
    rows, owned = Table(ids, table), own.owned
    if own.learnt is not None:
        learnt = own.learnt
        return lambda me: predict_label(me, rows, owned, learnt, p)
    return lambda me: predict_feature(me, p.label_party, rows, owned, p)


def owned(p: Boosting, seat: Seat, result: Any) -> Own:
    """What a party holds after `fit`."""
    if seat.party == p.label_party:
        return Own(seat.require_id(), result[0], seat.target or "", result[1])
    return Own(seat.require_id(), result[0])


def keep(p: Boosting, seat: Seat, result: Any) -> Part:
    """A party's part of a training, for its store."""
    ours = {"label_party", "kind", "begin", "may_be_empty", "encryption", "key_bits", "small_key", "backend"}
    told = p.model_dump(mode="json", exclude=ours | ({"loss"} if p.kind == "classification" else set()))
    settings = {**told, "encryption": p.scheme or Plain(p.key_bits)}
    said = settings if seat.party == p.label_party else {}
    return Part.of(METHODS[p.kind], seat.party, owned(p, seat, result), said)


def recall(p: Boosting, part: Part) -> Own:
    """What a party kept."""
    return part.read(Own)


def _check_before(p: Boosting, seat: Seat, before: Own) -> None:
    """ConfigError where the model that is continued is another than the one that is asked for."""
    if p.begin >= p.n_estimators:
        raise ConfigError(
            f"n_estimators={p.n_estimators} should be above the {p.begin} rounds that the model has; raise it"
        )
    learnt = before.learnt
    if (learnt is not None) != (seat.party == p.label_party):
        raise ConfigError(
            "the model that is continued has its target at another party than this training; train anew"
        )
    if learnt is None:
        return
    known = learnt.forest.parties
    if set(known) != set(seat.parties):
        raise ConfigError(
            f"the model that is continued is of {', '.join(known)}, and this training of "
            f"{', '.join(seat.parties)}; train anew"
        )
    if learnt.rounds != p.begin:
        raise ConfigError(
            f"the model that is continued has {learnt.rounds} rounds, not {p.begin}; train anew"
        )
    wanted = ("logistic", "softmax") if p.kind == "classification" else (p.loss,)
    if learnt.loss.name not in wanted:
        raise ConfigError(
            f"the model that is continued was trained with loss={learnt.loss.name!r}, not {p.loss!r}; train "
            "anew"
        )


METHODS = {
    "classification": "VerticalGradientBoostingClassifier",
    "regression": "VerticalGradientBoostingRegressor",
}
_SHAPE = (TreeKey, BinCounts, Drawn, Enough, Divided, Sides)
_SEALED: tuple[type[Message], ...] = (
    *SPOKEN,
    *_SHAPE,
    SealedGradients,
    SealedSums,
    Reached,
    Arrived,
    Outcomes,
)
_PREDICT: tuple[type[Message], ...] = (*SPOKEN, InAllSize, Reached, Arrived, Outcomes, Sides)

plain_program: Program[Boosting] = Program(
    name="vertical-boosting-plain",
    package="vfl",
    parameters=Boosting,
    speaks={"fit": (*_SEALED, ClearGradients, ClearSums), "predict": _PREDICT},
    prepare={"fit": fit, "predict": predict},
    keep=keep,
    recall=recall,
    careful={**CAREFUL, "predict_protocol": Bound(values=("levels",))},  # a bitmask tells of every split
)
program = replace(
    plain_program,
    name="vertical-boosting",
    parameters=SealedBoosting,
    speaks={"fit": _SEALED, "predict": _PREDICT},
    plain=False,
)
