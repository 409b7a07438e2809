"""Entity alignment: one common row order at the label party and at every feature party.

Takes part: the label party and one or more feature parties. Two parties run a private set intersection, by
blinding (`protocols.psi.ecdh`), of two large sets by oblivious evaluation (`protocols.psi.kkrt`; see
`protocols.psi.choose`), or of a small set against a large one that is prepared (`protocols.psi.unbalanced`);
three and more run it in a ring (`protocols.psi.ring`). All then list the common rows in the order of their
normalised ids.

Who learns what, by `reveal`:

- "all": each party learns which of its own ids all parties have. Training needs this: who sends features of
  the common rows knows which they are. To learn together without the feature parties' learning who is in the
  intersection, they would have to compute on all their rows under encryption or secret sharing; nothing here
  does.
- "label-party": the label party alone learns which of its ids all parties have; three and more, how many.
- "size": everybody learns how many ids all parties have, and nobody which.

Besides, every party learns how many distinct ids every other has and whether they are integers or text; of
three and more parties the label party learns how many ids each group of them shares. With duplicates="many"
and reveal="all" every party learns how many rows each common id has at the party where it has several.

Being in the common rows is itself a disclosure: who aligns with a hospital tells it who its customers are.

Assumes semi-honest parties and what the protocol assumes that is run. Sources: there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import numpy as np
import pandas as pd

from protocols.arrays import Array
from protocols.errors import AlignmentError, ConfigError, ProtocolError, marked, nearest
from protocols.federation import Federation
from protocols.party import Party
from protocols.policy.rules import Bound
from protocols.psi import choose, ring
from protocols.psi.choose import Protocol, held, meet
from protocols.psi.ecdh import Learns, Met
from protocols.psi.id_columns import InTable
from protocols.psi.ids import CanonicalIds, Duplicates, Ids, Normalise, Rows, canonical
from protocols.psi.once import once
from protocols.psi.risk import Guessable
from protocols.wire.message import Message, Spec

if TYPE_CHECKING:
    pass

Reveal = Literal["all", "label-party", "size"]
Id = str | Sequence[str]
C = TypeVar("C", str, Id)


class Repeats(Message, reveals="how many rows each common id has, where it has several"):
    """How many rows the sender has of each common id, in the common order of distinct ids."""

    counts: Annotated[Array, Spec("int64", ("n",))]


# All that aligning sends, by any protocol that is not asked for by name, where some id is at every party.
SPOKEN: tuple[type[Message], ...] = (
    *choose.SPOKEN,
    *(ring.RingKey, ring.RingPoints, ring.RingMarks, ring.InAll, ring.Unshuffle),
)


# What a caller may ask of the ids of others unless their policies say more: of ids that are hard to guess the
# digits alone may be easy.
CAREFUL = {"normalise": Bound(values=("strip", "casefold"))}


@dataclass(frozen=True)
class Aligned:
    """What one party knows after aligning."""

    rows: Rows = field(repr=False)  # (matched,) positions in its table, in the common order; empty if unknown
    total: int  # rows in its table
    duplicated: int  # rows left out because an earlier one has their id
    size: int | None  # ids that all parties have; None if this one was not to learn it
    sizes: Mapping[tuple[str, ...], int] = field(default_factory=dict)  # at the label party of three or more
    risk: Guessable | None = None  # of its ids, over a network
    many: bool = False  # whether all rows of an id count


@dataclass(frozen=True, eq=False)
class AlignmentReport:
    """How many rows found each other, and what finding out showed to whom."""

    counts: pd.DataFrame  # one line per party: rows = matched + lost + duplicated; missing where not learnt
    size: int | None  # ids that all parties have
    learnt: Mapping[str, str]  # party -> what it has learnt of the others, in words
    risks: Mapping[str, Guessable]  # party -> how well its ids can be guessed

    @property
    def shows(self) -> str:
        """All of `learnt`."""
        return " ".join(self.learnt.values())

    def __str__(self) -> str:
        risks = "\n".join(f"{party}: {risk}" for party, risk in self.risks.items())
        return f"{self.counts.to_string()}\n{self.shows}\n{risks}"


async def align_label(
    me: Party,
    features: Sequence[str],
    ids: Ids,
    *,
    reveal: Reveal = "all",
    protocol: Protocol = "auto",
    may_be_empty: bool = False,
    resume: bool = False,
    store: Path | None = None,
) -> Aligned:
    """The label party's role: find out, with all of `features`, which ids every party has.

    resume, store: as in `protocols.psi.choose.meet`.

    Raises AlignmentError where no id is at every party, unless it `may_be_empty`, and where one has several
    rows at two parties.
    """
    rows_learnt = reveal != "size"

    async def compare() -> Met:
        if len(features) == 1:
            learns: dict[Reveal, Learns] = {"all": "both", "label-party": "me", "size": "size"}
            return await meet(me, features[0], ids, learns[reveal], protocol, resume=resume, store=store)
        tell = reveal != "label-party"
        return await ring.compare(me, sorted(features), await held(me, ids), rows=rows_learnt, tell=tell)

    met = await once(me, compare)
    rows, size, sizes = met.rows, met.size, dict(met.sizes)
    if size == 0 and rows_learnt:
        if not may_be_empty:
            raise _nothing_shared(ids, sizes)
        for peer in features if reveal == "all" else ():
            await me.send(peer, ring.InAllSize(count=0))
    if rows is None:
        me.guard.intersection(size or 0)
        return Aligned(np.zeros(0, np.int64), ids.total, _left_out(ids), size, sizes, many=ids.many)
    await me.compute(me.guard.rows, ids.at(rows), cost=0.0)
    if ids.many and reveal == "all":
        rows = await _repeat_for_all(me, features, ids, rows)
    elif ids.many:
        rows = ids.every(rows, ids.counts(rows))
    return Aligned(rows, ids.total, _left_out(ids), size, sizes, many=ids.many)


async def align_feature(
    me: Party,
    label_party: str,
    features: Sequence[str],
    ids: Ids,
    *,
    reveal: Reveal = "all",
    protocol: Protocol = "auto",
    resume: bool = False,
    store: Path | None = None,
) -> Aligned:
    """A feature party's role. features: all feature parties, this one among them."""
    rows_learnt, tell = reveal != "size", reveal != "label-party"

    async def compare() -> Met:
        if len(features) == 1:
            learns: dict[Reveal, Learns] = {"all": "both", "label-party": "peer", "size": "size"}
            return await meet(me, label_party, ids, learns[reveal], protocol, resume=resume, store=store)
        own = await held(me, ids)
        return await ring.pass_on(me, label_party, sorted(features), own, rows=rows_learnt, tell=tell)

    met = await once(me, compare)
    rows, size = met.rows, met.size
    if rows is None:
        if size is not None:
            me.guard.intersection(size)
        return Aligned(np.zeros(0, np.int64), ids.total, _left_out(ids), size, many=ids.many)
    if size == 0:  # the label party says whether that is an error
        await me.recv(label_party, ring.InAllSize)
    await me.compute(me.guard.rows, ids.at(rows), cost=0.0)
    if ids.many:
        rows = await _repeat_as_told(me, label_party, ids, rows)
    return Aligned(rows, ids.total, _left_out(ids), size, many=ids.many)


def _nothing_shared(ids: Ids, sizes: Mapping[tuple[str, ...], int]) -> AlignmentError:
    alike = "are they written alike (leading zeros, blanks, upper and lower case, the same kind of id)?"
    pairs = ", ".join(f"{n} by {' and '.join(group)}" for group, n in sizes.items() if len(group) == 2)
    error = AlignmentError(
        f"no id is at every party: of {len(ids)} ids here none is{pairs and '; shared are ' + pairs}; {alike}"
    )
    error.told = f"no id is at every party; {alike}"  # the counts of each pair are not for the others
    return error


def _left_out(ids: Ids) -> int:
    return 0 if ids.many else ids.repeats


async def _repeat_for_all(me: Party, features: Sequence[str], ids: Ids, rows: Rows) -> Rows:
    """The label party's part of agreeing on how many rows each common id gets."""
    counts = {me.name: ids.counts(rows)}
    for peer in features:
        counts[peer] = await _counts(me, peer, len(rows))
    every = np.stack(list(counts.values()))
    twice = int(((every > 1).sum(axis=0) > 1).sum())
    if twice:
        raise AlignmentError(
            f"{twice} of {len(rows)} common ids have several rows at more than one party, so no row has one "
            'counterpart; pass duplicates="first", or aggregate at all parties but one'
        )
    times: Rows = every.max(axis=0)
    for peer in features:
        await me.send(peer, Repeats(counts=times))
    return ids.every(rows, times)


async def _repeat_as_told(me: Party, label_party: str, ids: Ids, rows: Rows) -> Rows:
    own = ids.counts(rows)
    await me.send(label_party, Repeats(counts=own))
    times = await _counts(me, label_party, len(rows))
    if ((own > 1) & (times != own)).any():
        raise ProtocolError(f"{Repeats.kind} from {label_party} in {me.scope!r}: other counts than ours")
    return ids.every(rows, times)


async def _counts(me: Party, peer: str, n: int) -> Rows:
    message = await me.recv(peer, Repeats)
    if len(message.counts) != n or (message.counts < 1).any():
        raise ProtocolError(
            f"{Repeats.kind} from {peer} in {me.scope!r}: expected {n} counts above 0, got "
            f"{len(message.counts)}, or some below"
        )
    return message.counts


def learns_rows(party: str, label_party: str, reveal: Reveal) -> bool:
    """Whether `party` learns which ids are common."""
    return reveal == "all" or (reveal == "label-party" and party == label_party)


def report(
    label_party: str,
    aligned: Mapping[str, Aligned],
    parties: Sequence[str],
    reveal: Reveal = "all",
    risks: Mapping[str, Guessable] | None = None,
) -> AlignmentReport:
    """What the parties' own counts say together: of those in `aligned`, of all `parties`."""
    lines = {}
    for party, a in aligned.items():
        matched = _distinct(a) if learns_rows(party, label_party, reveal) else None
        lost = None if matched is None else a.total - a.duplicated - matched
        lines[party] = (a.total, matched, lost, a.duplicated)
    columns = ["rows", "matched", "lost", "duplicated"]
    counts = pd.DataFrame.from_dict(lines, orient="index", columns=columns).rename_axis("party")
    size = next((a.size for a in aligned.values() if a.size is not None), None)
    learnt = {party: _learnt(party, label_party, a, parties, reveal) for party, a in aligned.items()}
    return AlignmentReport(counts.astype("Int64"), size, learnt, risks or {})


def _distinct(a: Aligned) -> int:
    chosen = np.zeros(a.total, np.bool_)  # a tenth of the memory of np.unique
    chosen[a.rows] = True
    return int(np.count_nonzero(chosen))


def _learnt(party: str, label_party: str, own: Aligned, parties: Sequence[str], reveal: Reveal) -> str:
    others = [peer for peer in parties if peer != party]
    shared = f"{others[0]} also has" if len(others) == 1 else "all other parties also have"
    if reveal == "size":
        what = f"how many ids all have ({own.size}), and not which"
    elif learns_rows(party, label_party, reveal):
        what = f"which of its own ids {shared} ({own.size})"
        if own.many and reveal == "all":
            what += ", how many rows each of these has where it has several"
    else:
        what = "nothing about which ids are shared" + (", but how many" if len(others) > 1 else "")
    groups = {group: n for group, n in own.sizes.items() if len(group) < len(parties)}
    if groups:
        said = ", ".join(f"{' and '.join(group)} {n}" for group, n in groups.items())
        what += f", how many ids each group of parties shares, and not which ({said})"
    have = "has" if len(others) == 1 else "have"
    return f"{party} learns {what}, and how many ids {' and '.join(others)} {have}; nothing of the rest."


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


def id_columns(id: C | Mapping[str, C], parties: Sequence[str]) -> dict[str, C]:
    """Each party's id column or columns. ConfigError if a mapping does not name exactly the parties."""
    if not isinstance(id, Mapping):
        return dict.fromkeys(parties, id)
    absent = [party for party in parties if party not in id]
    alien = [party for party in id if party not in parties]
    if absent or alien:
        said = [f"lacks {', '.join(absent)}"] * bool(absent) + [f"names {', '.join(alien)}"] * bool(alien)
        raise ConfigError(f"id {' and '.join(said)}; parties are {', '.join(parties)}")
    return {party: id[party] for party in parties}


def read_ids(
    federation: Federation, party: str, name: Id, duplicates: Duplicates, normalise: Normalise, step: str
) -> CanonicalIds:
    """The ids in a party's table; an error of that table says whose, and in which step."""
    with marked(party, step):
        return ids_of(federation[party], name, duplicates=duplicates, normalise=normalise)


def ids_of(
    table: pd.DataFrame, name: Id, *, duplicates: Duplicates = "error", normalise: Normalise = ()
) -> CanonicalIds:
    """The ids of a table in its column `name`, or in several columns together."""
    names = [name] if isinstance(name, str) else list(name)
    return canonical(InTable(table, names).whole(), duplicates=duplicates, normalise=normalise)
