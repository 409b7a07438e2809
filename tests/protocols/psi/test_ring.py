"""Intersection in a ring: equal to pandas', blind to what fewer than all share, firm with liars."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import AlignmentError, PolicyError, ProtocolError
from protocols.party import Desk, Party, run
from protocols.psi import ring
from protocols.psi.curve import multiply, new_scalar
from protocols.psi.ecdh import Met, blind
from protocols.psi.ids import CanonicalIds, canonical
from protocols.psi.ring import InAll, RingKey, RingMarks, RingPoints, Unshuffle, compare, pass_on
from protocols.wire.clock import run_virtual
from protocols.wire.codec import decode
from protocols.wire.ledger import Ledger
from protocols.wire.message import Message
from protocols.wire.transport import Envelope, Local
from tests.protocols.psi.test_ecdh import AtLeast, Tap

NAMES = ["bank", "shop", "telco", "utility", "zoo"]
Role = Callable[[Party], Coroutine[Any, Any, Any]]
Sets = Sequence[Sequence[int]]


def talk(roles: Mapping[str, Role]) -> tuple[dict[str, Any], list[Envelope]]:
    tap = Tap(local := Local(list(roles)))
    ledger = Ledger(tap)

    def role(name: str, body: Role) -> Coroutine[Any, Any, Any]:
        async def within() -> Any:
            async with Party(Desk(name, ledger)).within("psi") as at:
                return await body(at)

        return within()

    found, _ = run_virtual(run(**{name: role(name, body) for name, body in roles.items()}), local.on_stall)
    return found, tap.carried


def honest(sets: Sets, *, rows: bool = True, tell: bool = True) -> dict[str, Role]:
    names = NAMES[: len(sets)]
    ids = {name: canonical(pd.Series(own, dtype="int64")) for name, own in zip(names, sets, strict=True)}

    def role(name: str) -> Role:
        if name == "bank":
            return lambda me: compare(me, names[1:], ids[name], rows=rows, tell=tell)
        return lambda me: pass_on(me, "bank", names[1:], ids[name], rows=rows, tell=tell)

    return {name: role(name) for name in names}


def meet(sets: Sets, **how: bool) -> tuple[dict[str, Met], list[Envelope]]:
    return talk(honest(sets, **how))


some = st.lists(st.lists(st.integers(0, 9), unique=True, max_size=8), min_size=3, max_size=5)


@settings(max_examples=40)
@given(some)
def test_every_party_finds_the_intersection_of_all(sets: list[list[int]]) -> None:
    found, _ = meet(sets)
    shared = reduce(pd.Index.intersection, [pd.Index(own, dtype="int64") for own in sets])
    expected = sorted(shared, key=lambda i: str(i).encode())
    for name, own in zip(NAMES, sets, strict=False):
        rung = found[name]
        assert rung.rows is not None and [own[row] for row in rung.rows] == expected
        assert rung.size == len(expected)


@settings(max_examples=20)
@given(some)
def test_the_label_party_alone_learns_how_many_each_group_shares(sets: list[list[int]]) -> None:
    found, _ = meet(sets)
    names = NAMES[: len(sets)]
    for group, size in found["bank"].sizes.items():
        assert size == len(set.intersection(*(set(sets[names.index(name)]) for name in group)))
    assert len(found["bank"].sizes) == 2 ** len(sets) - len(sets) - 1
    assert all(not found[name].sizes for name in names[1:])


def test_one_may_learn_the_rows_or_all_the_size_alone() -> None:
    sets = [range(10), range(5, 20), range(3, 9)]
    alone, carried = meet(sets, tell=False)
    assert alone["bank"].rows.tolist() == [5, 6, 7, 8]  # type: ignore[union-attr]
    assert {(alone[name].rows, alone[name].size) for name in ("shop", "telco")} == {(None, None)}
    assert {(e.sender, e.receiver) for e in carried if e.kind == InAll.kind} == {("shop", "bank")}
    sized, carried = meet(sets, rows=False)
    assert {(rung.rows, rung.size) for rung in sized.values()} == {(None, 4)}
    assert not {InAll.kind, Unshuffle.kind} & {e.kind for e in carried}


def points(carried: Sequence[Envelope], receiver: str) -> list[bytes]:
    """Each point and mark that one party got to see."""
    seen: list[bytes] = []
    for e in carried:
        if e.receiver == receiver and e.kind in (RingPoints.kind, RingMarks.kind):
            body = decode(Message.kinds[e.kind], e.body)
            table = body.points if isinstance(body, RingPoints) else body.marks  # type: ignore[attr-defined]
            seen += [row.tobytes() for row in table]
    return seen


def test_a_party_on_the_way_sees_nothing_twice() -> None:
    sets = [range(30)] * 4  # all have the same ids: whatever could be linked would be equal
    _, carried = meet(sets)
    for name in NAMES[1:4]:
        seen = points(carried, name)
        assert len(seen) == len(set(seen)) > 0
        sent = [row for other in NAMES[:4] for row in points([e for e in carried if e.sender == name], other)]
        assert not set(seen) & set(sent)


def test_the_label_party_sees_its_own_set_in_an_order_that_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scalars: list[bytes] = []

    def known() -> bytes:
        scalars.append(new_scalar())
        return scalars[-1]

    monkeypatch.setattr(ring, "new_scalar", known)
    places = []
    for _ in range(60):
        scalars.clear()
        _, carried = meet([range(8), range(8), range(8)])
        first = next(e for e in carried if e.kind == RingPoints.kind and e.sender == "bank")
        last = next(e for e in carried if e.kind == RingMarks.kind)
        sent, back = decode(RingPoints, first.body).points, decode(RingMarks, last.body).marks
        full = multiply(scalars[2], multiply(scalars[1], sent))  # what only all feature parties could do
        places.append(back.tolist().index(full[0, : back.shape[1]].tolist()))
    assert np.bincount(places, minlength=8).max() < 25 and len(set(places)) > 5


def test_two_around_a_third_learn_what_is_stated_and_nothing_of_the_label_partys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """shop and utility conspire, telco sits between them: they learn which of shop's ids telco has, and can
    make no two points equal of which one is the bank's."""
    scalars: dict[int, bytes] = {}  # by how many ids a party has

    def watched(key: bytes, scalar: bytes, ids: CanonicalIds) -> Any:
        scalars[len(ids)] = scalar
        return blind(key, scalar, ids)

    monkeypatch.setattr(ring, "blind", watched)
    _, carried = meet([range(12), range(8), range(5, 15), range(3)])
    sets = {}
    for e in carried:
        if e.kind == RingPoints.kind and e.receiver in ("shop", "utility"):
            said = decode(RingPoints, e.body)
            sets[said.owner, e.receiver] = said.points

    def forms(points: Any) -> list[set[bytes]]:
        by_shop, by_utility = (multiply(scalars[count], points) for count in (8, 3))
        every = (points, by_shop, by_utility, multiply(scalars[3], by_shop))
        return [{row.tobytes() for row in form} for form in every]

    without, _, _, _ = forms(sets["shop", "utility"])
    _, with_shop, _, _ = forms(sets["telco", "utility"])
    assert len(without & with_shop) == 3  # 5, 6 and 7, at places of shop's own order
    bank = [form for (owner, _), seen in sets.items() if owner == "bank" for form in forms(seen)]
    others = [form for (owner, _), seen in sets.items() if owner != "bank" for form in forms(seen)]
    assert len(bank) == 8 and not any(form & other for form in bank for other in others)


def test_members_of_a_pairwise_intersection_change_no_view() -> None:
    """Two worlds in which bank and shop share different ids that telco lacks: all that any party can compute
    from what it got, the sizes and the marks of its own set, is the same in both."""

    def views(sets: Sets) -> dict[str, Any]:
        found, carried = meet(sets)
        shape = {
            name: [(e.sender, e.kind, len(e.body)) for e in carried if e.receiver == name]
            for name in NAMES[:3]
        }
        rows = {name: [] if rung.rows is None else rung.rows.tolist() for name, rung in found.items()}
        return {"shape": shape, "rows": rows, "sizes": found["bank"].sizes}

    one = views([[0, 1, 2, 3, 4], [0, 1, 7, 8], [0, 9]])
    other = views([[0, 1, 2, 3, 4], [0, 3, 7, 8], [0, 9]])  # bank and shop share 3, not 1
    assert one == other


def test_nothing_that_is_sent_holds_an_id_or_its_hash() -> None:
    names = [f"person-{i}@example.org" for i in range(20)]
    ids = canonical(pd.Series(names))
    _, carried = talk(
        {
            "bank": lambda me: compare(me, ["shop", "telco"], ids, rows=True, tell=True),
            "shop": lambda me: pass_on(me, "bank", ["shop", "telco"], ids, rows=True, tell=True),
            "telco": lambda me: pass_on(me, "bank", ["shop", "telco"], ids, rows=True, tell=True),
        }
    )
    said = b"".join(e.body for e in carried)
    for name in names:
        raw = name.encode()
        for hashed in ("sha256", "sha512", "md5", "blake2b", "blake2s"):
            assert hashlib.new(hashed, raw).digest()[:8] not in said
        assert raw not in said


def test_two_runs_say_nothing_alike() -> None:
    sets = [[1, 2, 3], [1, 2, 3], [1, 2, 3]]
    first, second = (meet(sets)[1] for _ in range(2))
    seen = [{row for name in NAMES[:3] for row in points(carried, name)} for carried in (first, second)]
    assert not seen[0] & seen[1]


class Lying:
    """A party that changes what it sends, once."""

    def __init__(self, me: Party, kind: type[Message], change: Callable[[Any], Message]) -> None:
        self._me, self._kind, self._change = me, kind, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._me, name)

    async def send(self, to: str, message: Message) -> None:
        await self._me.send(to, self._change(message) if isinstance(message, self._kind) else message)


def changed(message: Any, **values: Any) -> Any:
    return type(message)(**{**dict(message), **values})


@pytest.mark.parametrize(
    ("who", "kind", "change", "said"),
    [
        ("shop", RingPoints, lambda m: changed(m, owner="zoo"), "expected the points of"),
        ("shop", RingPoints, lambda m: changed(m, points=m.points[1:]), "expected the . points announced"),
        ("telco", RingPoints, lambda m: changed(m, points=m.points[[0] * len(m.points)]), "come twice"),
        ("telco", RingPoints, lambda m: changed(m, points=0 * m.points), "small order"),
        ("telco", RingMarks, lambda m: changed(m, marks=m.marks[[0] * len(m.marks)]), "4 different marks"),
        (
            "bank",
            RingKey,
            lambda m: changed(m, counts=m.counts + 1),
            "expected the counts of 2 parties",
        ),
        ("bank", RingKey, lambda m: changed(m, wrapped=m.wrapped[::-1]), "its key does not open"),
        ("bank", InAll, lambda m: changed(m, mask=m.mask[1:]), "expected one mark for each of . ids"),
        ("bank", Unshuffle, lambda m: changed(m, mask=m.mask[1:]), "expected one mark for each of 4 ids"),
        ("shop", InAll, lambda m: changed(m, mask=~m.mask), "marks . ids, expected"),
    ],
)
def test_what_no_honest_party_sends_is_refused(
    who: str, kind: type[Message], change: Callable[[Any], Message], said: str
) -> None:
    roles = honest([[1, 2, 3, 4], [2, 3, 4, 5, 6], [3, 8, 9]])
    honest_role = roles[who]
    roles[who] = lambda me: honest_role(Lying(me, kind, change))  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match=said) as refused:
        talk(roles)
    assert "psi" in str(refused.value)


@pytest.mark.parametrize("who", ["bank", "shop", "telco"])
@pytest.mark.parametrize("tell", [True, False])
def test_too_few_that_all_share_are_refused_before_the_label_party_knows_which(who: str, tell: bool) -> None:
    """Whoever asks for more than match: the ring's last message, by which it would know, is not sent."""
    said: list[tuple[str, str]] = []

    def sharing(three: bool, least: int) -> dict[str, Role]:
        roles = honest(
            [[1, 2, 3, 4], [2, 3, 4, 5, 6], [3, 4, 8, 9]] if three else [[1, 2], [3, 4], [5, 6]], tell=tell
        )
        inner = roles[who]

        async def guarded(me: Party) -> Any:
            me.desk.guard = AtLeast(least)
            try:
                return await inner(me)
            finally:
                said.extend((e.receiver, e.kind) for e in me.desk.ledger)

        return {**roles, who: guarded}

    assert ("bank", InAll.kind) in [(e.receiver, e.kind) for e in talk(sharing(True, 2))[1]]
    said.clear()
    with pytest.raises(PolicyError, match=f"^{who}/psi: min_intersection: fewer than 3 rows match"):
        talk(sharing(True, 3))
    assert ("bank", InAll.kind) not in said
    if who == "bank":
        assert not {InAll.kind, Unshuffle.kind} & {kind for _, kind in said}
    talk(sharing(False, 2))  # that there is none is no secret of anybody's


def test_integers_against_text_is_an_error() -> None:
    roles = honest([[1], [2], [3]])
    text = canonical(pd.Series(["1"]))
    roles["telco"] = lambda me: pass_on(me, "bank", ["shop", "telco"], text, rows=True, tell=True)
    with pytest.raises(AlignmentError, match=r"those of (bank|telco) are (integers|text); cast one side"):
        talk(roles)
