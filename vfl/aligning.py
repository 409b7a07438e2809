"""Alignment as a program, for parties in processes of their own: each keeps which of its rows are common.

Takes part: the label party and the feature parties, each for itself. Every party is told `Align`; who learns
what is told in `vfl.align`. A party that learns the common rows keeps their positions as its part of the run,
with a fingerprint of its table, so that `export` finds out when the table has changed since.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import pandas as pd

from protocols.arrays import Arrays
from protocols.errors import ConfigError, DataError
from protocols.federation import Role
from protocols.parts import Part
from protocols.party import Party
from protocols.programs import Parameters, Program, Seat
from protocols.psi import unbalanced
from protocols.psi.choose import Protocol, check_protocol
from protocols.psi.ids import Duplicates, Rule
from protocols.psi.ring import InAllSize
from protocols.sources import fingerprint
from vfl.align import SPOKEN, Aligned, Repeats, Reveal, align_feature, align_label, ids_of, learns_rows


class Align(Parameters):
    """What all parties of an alignment are told; as the arguments of `vfl.align`."""

    label_party: str
    duplicates: Duplicates = "error"
    normalise: tuple[Rule, ...] = ()
    reveal: Reveal = "all"
    protocol: Protocol = "auto"

    def features(self, parties: Sequence[str]) -> list[str]:
        """The feature parties. ConfigError where the label party takes no part, or alone."""
        others = [party for party in parties if party != self.label_party]
        if not others or len(others) == len(parties):
            raise ConfigError(
                f"{self.label_party} should be one of several parties, got {', '.join(parties)}"
            )
        return others


def align(p: Align, seat: Seat) -> Role:
    """A party's role."""
    if seat.table is None or seat.id is None:
        raise ConfigError("has no table with an id column; every party of an alignment brings ids")
    ids = ids_of(seat.table, seat.id, duplicates=p.duplicates, normalise=p.normalise)
    features = p.features(seat.parties)
    check_protocol(p.protocol, p.reveal == "size", len(seat.parties))

    async def role(me: Party) -> Aligned:
        async with me.within("align") as at:
            if seat.party == p.label_party:
                return await align_label(
                    at, features, ids, reveal=p.reveal, protocol=p.protocol, resume=True, store=seat.store
                )
            return await align_feature(
                *(at, p.label_party, features, ids),
                reveal=p.reveal,
                protocol=p.protocol,
                resume=True,
                store=seat.store,
            )

    return role


def keep(p: Align, seat: Seat, result: Aligned) -> Part:
    """The common rows, if this party learnt them."""
    assert seat.table is not None
    known = learns_rows(seat.party, p.label_party, p.reveal)
    about = {
        **p.model_dump(mode="json"),
        "id": list(seat.id) if isinstance(seat.id, tuple) else seat.id,
        "known": known,
        "table": fingerprint(seat.table),
        # The other parties are told a digest of this part: without it they could try sets of rows.
        "salt": secrets.token_hex(16),
    }
    return Part("align", seat.party, about, Arrays({"rows": result.rows}))


def export(part: Part, table: pd.DataFrame) -> pd.DataFrame:
    """The common rows of a party's `table`, in the common order.

    ConfigError if the part is none of an alignment or its party did not learn the rows, DataError if the
    table is not the one that was aligned.
    """
    if part.method != "align":
        raise ConfigError(f"this run is of {part.method}, expected one of align")
    if not part.settings["known"]:
        raise ConfigError(
            f"{part.party} did not learn which rows are common: it was aligned with "
            f"reveal={part.settings['reveal']!r}"
        )
    if fingerprint(table) != part.settings["table"]:
        raise DataError("the table has changed since it was aligned; align again")
    return table.iloc[part.weights["rows"]]


def recall(p: Align, part: Part) -> None:
    """Nothing is predicted with an alignment."""
    raise ConfigError("an alignment has nothing to predict with")


def learners(p: Align, others: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `others` who learn which ids, or how many, a party shares with them. In a ring all learn how
    many."""
    if p.reveal != "label-party" or len(others) > 1:
        return others
    return (p.label_party,) if p.label_party in others else ()


SPEAKS = {"align": (*SPOKEN, *unbalanced.SPOKEN, InAllSize, Repeats)}


program = Program(
    *("align", "vfl", Align, SPEAKS, {"align": align}, keep, recall),
    plain=False,
    learners=learners,
)
