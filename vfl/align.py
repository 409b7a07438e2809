"""Entity alignment: one common row order at the label party and at every feature party.

Takes part: the label party and one or more feature parties. The label party runs a two-party private set
intersection with each feature party, intersects the results, and tells each feature party which of the ids
that the two share are at every party. All then list the common rows in the order of their normalised ids.

Who learns what: the label party learns, for each feature party by itself, which of its own ids that party
has. A feature party learns which of its ids the label party has, and which of those all parties have. Both
learn how many ids the other has and whether they are integers or text. Feature parties exchange nothing. So
with two or more feature parties the pairwise intersections come out, which the ring form would hide.

Being in the common rows is itself a disclosure: who aligns with a hospital tells it who its customers are.

Assumes semi-honest parties and what `protocols.psi.ecdh` assumes. Sources: there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protocols.arrays import Array
from protocols.errors import AlignmentError, ConfigError, ProtocolError, marked, nearest
from protocols.federation import Federation, Role
from protocols.party import Party
from protocols.progress import bar
from protocols.psi.ecdh import intersect
from protocols.psi.ids import CanonicalIds, canonical
from protocols.tables import column
from protocols.wire.ledger import Ledger
from protocols.wire.message import Message, Spec

Duplicates = Literal["error", "first"]
Rows = NDArray[np.int64]


class Common(Message, reveals="which of the ids that sender and receiver share are shared by every party"):
    """One truth value per id that the two share, in the order of normalised ids."""

    mask: Annotated[Array, Spec("bool", ("n",))]


@dataclass(frozen=True)
class Aligned:
    """What one party knows of its own table after aligning."""

    rows: Rows = field(repr=False)  # (matched,) positions in its table, in the common order
    total: int  # rows in its table
    duplicated: int  # rows left out because an earlier one has their id
    shared: Mapping[str, int]  # peer -> ids shared with that peer alone


@dataclass(frozen=True, eq=False)
class AlignmentReport:
    """How many rows found each other, and what finding out showed to whom."""

    counts: pd.DataFrame  # one line per party: rows = matched + lost + duplicated
    shows: str

    def __str__(self) -> str:
        return f"{self.counts.to_string()}\n{self.shows}"


@dataclass(frozen=True, eq=False)
class Alignment:
    """The parties' tables with the common rows only, in one order."""

    tables: dict[str, pd.DataFrame] = field(repr=False)  # row i is of the same id at every party
    report: AlignmentReport
    ledger: Ledger


async def align_label(
    me: Party, features: Sequence[str], ids: CanonicalIds, *, may_be_empty: bool = False
) -> Aligned:
    """The label party's role: intersect with each of `features`, then tell each what all share.

    Raises AlignmentError where no id is at every party, unless it `may_be_empty`.
    """
    # One peer after another: the label party's own blinding takes most of the time, and it has one CPU.
    found = {peer: await intersect(me, peer, ids) for peer in features}
    marks = sum(len(rows) for rows in found.values())
    masks = await me.compute(_common, list(found.values()), cost={"id_match": marks})
    shared = {peer: len(rows) for peer, rows in found.items()}
    if not masks[0].any() and not may_be_empty:
        said = ", ".join(f"{n} with {peer}" for peer, n in shared.items())
        alike = "are they written alike (leading zeros, blanks, upper and lower case, the same kind of id)?"
        error = AlignmentError(f"no id is at every party: of {len(ids)} ids here {said} are shared; {alike}")
        error.told = f"no id is at every party; {alike}"  # the counts of each pair are not for the others
        raise error
    for peer, mask in zip(features, masks, strict=True):
        await me.send(peer, Common(mask=mask))
    rows: Rows = found[features[0]][masks[0]]
    me.guard.rows(ids.at(rows))
    return Aligned(rows, len(ids) + ids.repeats, ids.repeats, shared)


async def align_feature(me: Party, label_party: str, ids: CanonicalIds) -> Aligned:
    """A feature party's role: intersect with the label party, then keep what all parties share."""
    rows = await intersect(me, label_party, ids)
    mask = (await me.recv(label_party, Common)).mask
    if len(mask) != len(rows):
        raise ProtocolError(
            f"{Common.kind} from {label_party} in {me.scope!r}: expected one mark for each of {len(rows)} "
            f"shared ids, got {len(mask)}"
        )
    me.guard.rows(ids.at(rows[mask]))
    return Aligned(rows[mask], len(ids) + ids.repeats, ids.repeats, {label_party: len(rows)})


def align(
    data: Mapping[str, pd.DataFrame] | Federation,
    *,
    id: str | Mapping[str, str],
    label_party: str,
    duplicates: Duplicates = "error",
) -> Alignment:
    """Bring the parties' tables into one common row order, by private set intersection.

    id: the id column, or {party: its id column}. duplicates: whether a repeated id is an error or its first
    row stands for it. Columns and index labels stay as they are. `vertical` estimators align by themselves.

    Raises ConfigError for names that fit no party, DataError for an id column that is missing or cannot be
    used, AlignmentError for ids of different types and where no id is at every party.
    """
    federation = Federation.local(data)
    features = feature_parties(federation.parties, label_party)
    names = id_columns(id, federation.parties)
    ids = {party: read_ids(federation, party, names[party], duplicates, "align") for party in federation}

    def role(party: str) -> Role:
        async def aligning(me: Party) -> Aligned:
            async with me.within("align") as at:
                if party == label_party:
                    return await align_label(at, features, ids[party])
                return await align_feature(at, label_party, ids[party])

        return aligning

    with bar("align") as on_progress:
        run = federation.run({party: role(party) for party in federation}, on_progress=on_progress)
    tables = {party: federation[party].iloc[run.results[party].rows] for party in federation}
    return Alignment(tables, report(label_party, run.results), run.ledger)


def report(label_party: str, aligned: Mapping[str, Aligned]) -> AlignmentReport:
    """What the parties' own counts say together."""
    lines = {
        party: (a.total, len(a.rows), a.total - a.duplicated - len(a.rows), a.duplicated)
        for party, a in aligned.items()
    }
    columns = ["rows", "matched", "lost", "duplicated"]
    counts = pd.DataFrame.from_dict(lines, orient="index", columns=columns).rename_axis("party")
    shared = aligned[label_party].shared
    if len(shared) == 1:
        (peer,) = shared
        shows = (
            f"{label_party} and {peer} each learn which of their own ids the other has ({shared[peer]}), "
            "and how many ids the other has; nothing of the rest."
        )
    else:
        said = ", ".join(f"{n} with {peer}" for peer, n in shared.items())
        shows = (
            f"Ids are compared pair by pair. {label_party} learns which of its ids each other party has "
            f"({said}), also where not all have them ({len(aligned[label_party].rows)} do). Each other party "
            f"learns which of its ids {label_party} has, and which of those all have. Each pair learns how "
            "many ids the other has; nothing of the rest."
        )
    return AlignmentReport(counts, shows)


def feature_parties(parties: Sequence[str], label_party: str) -> tuple[str, ...]:
    """All parties but the label party, in order. ConfigError if there is no such party, or no other."""
    if label_party not in parties:
        known = ", ".join(parties)
        raise ConfigError(f"no party {label_party!r}; parties are {known}{nearest(label_party, parties)}")
    if len(parties) < 2:
        raise ConfigError(
            f"{label_party} is the only party, expected one more at least: columns of the same rows are "
            "learnt from at two parties or more; is a table missing from the mapping?"
        )
    return tuple(party for party in parties if party != label_party)


def id_columns(id: str | Mapping[str, str], parties: Sequence[str]) -> dict[str, str]:
    """Each party's id column. ConfigError if a mapping does not name exactly the parties there are."""
    if not isinstance(id, Mapping):
        return dict.fromkeys(parties, id)
    absent = [party for party in parties if party not in id]
    alien = [party for party in id if party not in parties]
    if absent or alien:
        said = [f"lacks {', '.join(absent)}"] * bool(absent) + [f"names {', '.join(alien)}"] * bool(alien)
        raise ConfigError(f"id {' and '.join(said)}; parties are {', '.join(parties)}")
    return {party: id[party] for party in parties}


def read_ids(
    federation: Federation, party: str, name: str, duplicates: Duplicates, step: str
) -> CanonicalIds:
    """The ids in column `name` of a party's table; an error of that table says whose, and in which step."""
    with marked(party, step):
        return canonical(column(federation[party], name, "id"), duplicates=duplicates)


def _common(found: Sequence[Rows]) -> list[NDArray[np.bool_]]:
    """For each pair's rows of the label party's table, which of them are in every pair's."""
    everywhere = reduce(np.intersect1d, found)
    return [np.isin(rows, everywhere) for rows in found]
