"""Alignment as a program, for parties in processes of their own: each keeps which of its rows are common.

Takes part: the label party and the feature parties, each for itself. Every party is told `Align`; who learns
what is told in `vfl.align`. A party that learns the common rows keeps their positions as its part of the run,
with a fingerprint of its table, so that `export` finds out when the table has changed since.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from protocols.errors import ConfigError, DataError
from protocols.parts import Part
from protocols.party import Party, Role, Run
from protocols.policy.history import secret_of
from protocols.policy.rules import Bound
from protocols.programs import Parameters, Program, Seat
from protocols.progress import bar
from protocols.psi import stored, unbalanced
from protocols.psi.choose import Protocol, check_protocol
from protocols.psi.id_columns import IdColumn, InTable
from protocols.psi.ids import Duplicates, Ids, Rows, Rule, canonical
from protocols.psi.ring import InAllSize
from protocols.psi.risk import guessable
from protocols.wire.message import Message
from vfl.alignment.roles import (
    CAREFUL,
    SPOKEN,
    Aligned,
    AlignmentReport,
    Repeats,
    Reveal,
    align_feature,
    align_label,
    feature_parties,
    learns_rows,
    report,
)

if TYPE_CHECKING:
    from protocols.service.caller import Connected


class Align(Parameters):
    """What all parties of an alignment are told; as the arguments of `vfl.align`."""

    label_party: str
    duplicates: Duplicates = "error"
    normalise: tuple[Rule, ...] = ()
    reveal: Reveal = "all"
    protocol: Protocol = "auto"

    def features(self, parties: Sequence[str]) -> tuple[str, ...]:
        """The feature parties. ConfigError where the label party takes no part, or alone."""
        return feature_parties(parties, self.label_party)


def align(p: Align, seat: Seat) -> Role:
    """A party's role."""
    features = p.features(seat.parties)
    check_protocol(p.protocol, p.reveal == "size", len(seat.parties))
    column = id_column(seat)
    ids: Ids
    if len(features) == 1 and p.reveal != "size" and column.rows >= stored.FROM:
        ids = stored.store(column, seat.scratch, duplicates=p.duplicates, normalise=p.normalise)
    else:
        ids = canonical(column.whole(), duplicates=p.duplicates, normalise=p.normalise)

    async def role(me: Party) -> Aligned:
        how: Mapping[str, Any] = {
            "reveal": p.reveal,
            "protocol": p.protocol,
            "resume": True,
            "store": seat.store,
        }
        async with me.within("align") as at:
            if seat.party == p.label_party:
                aligned = await align_label(at, features, ids, **how)
            else:
                aligned = await align_feature(at, p.label_party, features, ids, **how)
            return replace(aligned, risk=await at.compute(guessable, ids, cost=0.0))

    return role


@dataclass(frozen=True)
class Own:
    """One party's own part."""

    id: str | tuple[str, ...] | None  # its column or columns
    known: bool  # whether it learnt the rows
    table: str  # the fingerprint of its ids
    salt: str  # the others are told a digest of the part: without this they could try sets of rows
    rows: Rows = field(repr=False)  # (k,) int64, in the common order


def keep(p: Align, seat: Seat, result: Aligned) -> Part:
    """The common rows, if this party learnt them."""
    known = learns_rows(seat.party, p.label_party, p.reveal)
    own = Own(
        id=seat.id,
        known=known,
        table=id_column(seat).fingerprint,
        # An attempt that follows a crash has the same, since others may have kept the digest by then.
        salt=secret_of(seat.store, seat.job) if seat.store and seat.job else secrets.token_hex(16),
        rows=result.rows,
    )
    return Part.of("align", seat.party, own, p.model_dump(mode="json"))


def export(part: Part, table: pd.DataFrame) -> pd.DataFrame:
    """The common rows of a party's `table`, in the common order.

    Errors as of `exported`.
    """
    id = _own(part).id
    names = [*id] if isinstance(id, tuple) else [str(id)]
    return table.iloc[exported(part, InTable(table, names))]


def exported(part: Part, column: IdColumn) -> Rows:
    """The common rows, in the common order, of the table with this id column: int64 (k,).

    ConfigError if the part is none of an alignment or its party did not learn the rows, DataError if the
    ids are not those that were aligned.
    """
    own = _own(part)
    if not own.known:
        raise ConfigError(
            f"{part.party} did not learn which rows are common: it was aligned with "
            f"reveal={part.settings['reveal']!r}"
        )
    if column.fingerprint != own.table:
        raise DataError("the table has changed since it was aligned; align again")
    return own.rows


def _own(part: Part) -> Own:
    if part.method != "align":
        raise ConfigError(f"this run is of {part.method}, expected one of align")
    return part.read(Own)


def align_ids(
    federation: Connected,
    parties: Sequence[str],
    column: IdColumn,
    label_party: str,
    how: Mapping[str, Any],
) -> tuple[AlignmentReport, Aligned, Run]:
    """Over a network, with this party's ids from wherever they are: what it has learnt, and the run.

    how: as the other arguments of `vfl.align`, which also says what is raised.
    """
    me, reveal = federation.me, how["reveal"]
    parameters = program.read({"label_party": label_party, **how})
    name = column.names[0] if len(column.names) == 1 else tuple(column.names)

    def seat(party: str) -> Seat:
        at = federation.store
        return Seat(party, tuple(parties), id=name, ids=column, scratch=at.scratch, store=at.folder)

    with bar("align") as on_progress:
        column.on_progress = on_progress
        run = federation.execute(program, "align", parameters, seat, parties, on_progress=on_progress)
    own: Aligned = run.results[me]
    risks = {me: own.risk} if own.risk is not None else {}
    return report(label_party, run.results, parties, reveal, risks), own, run


def id_column(seat: Seat) -> IdColumn:
    """The ids of a seat. ConfigError where it has none."""
    if seat.ids is not None:
        return seat.ids
    if seat.table is None or seat.id is None:
        raise ConfigError("has no table with an id column; every party of an alignment brings ids")
    return InTable(seat.table, [seat.id] if isinstance(seat.id, str) else seat.id)


def recall(p: Align, part: Part) -> None:
    """Nothing is predicted with an alignment."""
    raise ConfigError("an alignment has nothing to predict with")


def learners(p: Align, others: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `others` who learn which ids, or how many, a party shares with them. In a ring all learn how
    many."""
    if p.reveal != "label-party" or len(others) > 1:
        return others
    return (p.label_party,) if p.label_party in others else ()


SPEAKS: dict[str, tuple[type[Message], ...]] = {"align": (*SPOKEN, *unbalanced.SPOKEN, InAllSize, Repeats)}


program = Program(
    name="align",
    package="vfl",
    parameters=Align,
    speaks=SPEAKS,
    prepare={"align": align},
    keep=keep,
    recall=recall,
    plain=False,
    ids_only=True,
    learners=learners,
    careful={
        **CAREFUL,
        "duplicates": Bound(values=("error", "first")),
    },  # "many" tells how many rows an id has
)
