"""Private set intersection: equal to pandas', blind to the rest, and firm with a peer that is not honest."""

from __future__ import annotations

import base64
import hashlib
import secrets
import unicodedata
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import AlignmentError, PolicyError, ProtocolError
from protocols.party import Desk, Party, Unguarded, run
from protocols.psi import curve, ecdh
from protocols.psi.ecdh import BlindedIds, IdKind, TwiceBlinded, intersect
from protocols.psi.ids import CanonicalIds, canonical
from protocols.wire.clock import run_virtual
from protocols.wire.codec import decode
from protocols.wire.ledger import Ledger
from protocols.wire.message import Message
from protocols.wire.transport import Envelope, Local, Network

Role = Callable[[Party], Coroutine[Any, Any, Any]]


class Tap:
    """A transport that keeps what it carries."""

    def __init__(self, inner: Local) -> None:
        self.inner = inner
        self.carried: list[Envelope] = []

    async def deliver(self, envelope: Envelope) -> None:
        self.carried.append(envelope)
        await self.inner.deliver(envelope)

    async def collect(self, receiver: str, sender: str, scope: str) -> Envelope:
        return await self.inner.collect(receiver, sender, scope)

    def close(self, receiver: str, scope: str) -> None:
        self.inner.close(receiver, scope)


def talk(bank: Role, shop: Role, network: Network | None = None) -> tuple[dict[str, Any], Tap, Ledger]:
    """Both roles to their end, in scope "psi"; their results, and what was said."""
    tap = Tap(local := Local(["bank", "shop"], network))
    ledger = Ledger(tap)

    def role(name: str, body: Role) -> Coroutine[Any, Any, Any]:
        async def within() -> Any:
            async with Party(Desk(name, ledger, network=network)).within("psi") as at:
                return await body(at)

        return within()

    results, _ = run_virtual(run(bank=role("bank", bank), shop=role("shop", shop)), local.on_stall)
    return results, tap, ledger


def honest(peer: str, ids: pd.Series | CanonicalIds) -> Role:
    known = canonical(ids) if isinstance(ids, pd.Series) else ids
    return lambda me: intersect(me, peer, known)


def shared(bank: pd.Series, shop: pd.Series) -> tuple[list[Any], list[Any]]:
    """The ids that each side finds to be shared, in the order that it is given."""
    results, _, _ = talk(honest("shop", bank), honest("bank", shop))
    assert results["bank"].dtype == results["shop"].dtype == np.int64
    return bank.iloc[results["bank"]].tolist(), shop.iloc[results["shop"]].tolist()


def texts(*values: str) -> pd.Series:
    return pd.Series(values, dtype=object)


def numbers(*values: int) -> pd.Series:
    return pd.Series(values, dtype="int64")


few = st.lists(st.integers(-3, 8), unique=True, max_size=8)
large = st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=4)


@given(few, few, large, large)
@settings(max_examples=40)
def test_integers_give_the_pandas_intersection(
    a: list[int], b: list[int], c: list[int], d: list[int]
) -> None:
    bank, shop = numbers(*dict.fromkeys(a + c)), numbers(*dict.fromkeys(b + d + c[:1]))
    expected = sorted(
        set(pd.merge(bank.to_frame("id"), shop.to_frame("id"))["id"]), key=lambda i: str(i).encode()
    )
    assert shared(bank, shop) == (expected, expected)


@given(st.sets(st.text(max_size=3), max_size=6), st.sets(st.text(max_size=3), max_size=6), st.data())
@settings(max_examples=40)
def test_text_meets_in_any_unicode_form(a: set[str], b: set[str], data: st.DataObject) -> None:
    composed = [{unicodedata.normalize("NFC", name) for name in names | {"é", "한"}} for names in (a, b)]
    bank = texts(*data.draw(st.permutations(sorted(composed[0]))))
    shop = texts(*(unicodedata.normalize("NFD", name) for name in composed[1]))
    expected = sorted(composed[0] & composed[1], key=str.encode)
    found = shared(bank, shop)
    assert [[unicodedata.normalize("NFC", name) for name in side] for side in found] == [expected, expected]


@pytest.mark.parametrize(
    ("bank", "shop", "expected"),
    [
        (numbers(), numbers(), []),
        (numbers(), numbers(1, 2), []),
        (numbers(5), numbers(5), [5]),
        (numbers(5), numbers(6), []),
        (numbers(1, 3), numbers(2, 4), []),
        (numbers(9, 10, -2), numbers(-2, 7, 10, 9, 8), [-2, 10, 9]),
        (texts(), texts(), []),
        (texts("b", "", "B", "é"), texts("B", "é", "", "x"), ["", "B", "é"]),
    ],
)
def test_every_run_takes_the_same_messages(bank: pd.Series, shop: pd.Series, expected: list[Any]) -> None:
    results, tap, ledger = talk(honest("shop", bank), honest("bank", shop))
    assert bank.iloc[results["bank"]].tolist() == shop.iloc[results["shop"]].tolist() == expected
    for sender in ("bank", "shop"):
        kinds = [e.kind for e in tap.carried if e.sender == sender]
        assert kinds == [IdKind.kind, BlindedIds.kind, TwiceBlinded.kind]
    assert ledger.chain_length() == 3


class AtLeast(Unguarded):
    """The guard of a party whose policy wants so many matches."""

    def __init__(self, least: int) -> None:
        self.least = least

    def intersection(self, rows: int) -> None:
        if rows < self.least:
            raise PolicyError(f"min_intersection: fewer than {self.least} rows match")


@pytest.mark.parametrize("sizes", [(3, 9), (9, 3)])
def test_too_few_announced_ids_are_refused_before_our_own_leave(sizes: tuple[int, int]) -> None:
    """A peer that brings fewer ids than a policy wants matches does not learn which of them are here."""
    bank, shop = (numbers(*range(size)) for size in sizes)
    said: list[str] = []

    def guarded(least: int) -> Role:
        async def role(me: Party) -> Any:
            me.desk.guard = AtLeast(least)
            try:
                return await intersect(me, "bank", canonical(shop))
            finally:
                said[:] = [entry.kind for entry in me.desk.ledger if entry.sender == "shop"]

        return role

    results, _, _ = talk(honest("shop", bank), guarded(3))
    assert shop.iloc[results["shop"]].tolist() == [0, 1, 2]
    with pytest.raises(PolicyError, match=r"^shop/psi: min_intersection: fewer than 4 rows match"):
        talk(honest("shop", bank), guarded(4))
    assert said == [IdKind.kind]


def test_the_order_does_not_depend_on_the_tables() -> None:
    ids = np.arange(-20, 20)
    rng = np.random.default_rng(0)
    expected = sorted(range(-5, 20), key=lambda i: str(i).encode())
    for _ in range(5):
        bank, shop = numbers(*rng.permutation(ids)), numbers(*rng.permutation(ids[15:]))
        assert shared(bank, shop) == (expected, expected)


def test_rows_count_in_the_table_with_its_repeats() -> None:
    bank = texts("b", "b", "a", "c", "a")
    results, _, _ = talk(
        honest("shop", canonical(bank, duplicates="first")), honest("bank", texts("a", "x", "b"))
    )
    assert results["bank"].tolist() == [2, 0] and results["shop"].tolist() == [0, 2]


def test_two_conversations_in_one_scope_do_not_meet() -> None:
    async def twice(me: Party) -> list[list[int]]:
        peer = "shop" if me.name == "bank" else "bank"
        return [(await intersect(me, peer, canonical(numbers(*own)))).tolist() for own in ([1, 2], [2, 3, 4])]

    results, _, _ = talk(twice, twice)
    assert results["bank"] == results["shop"] == [[0, 1], [0, 1, 2]]


def needles(secret: bytes) -> list[bytes]:
    """An id and every unkeyed hash of it, as bytes, hex and base64."""
    hashes = ("sha256", "sha512", "sha1", "md5", "blake2b", "blake2s", "sha3_256")
    raw = [secret, *(hashlib.new(name, secret).digest() for name in hashes)]
    text = [form for value in raw for form in (value.hex().encode(), base64.b64encode(value).rstrip(b"="))]
    return [*raw, *text, *(value.upper() for value in text[::2])]


def test_no_id_and_no_hash_of_one_is_ever_sent() -> None:
    canaries = [secrets.token_bytes(16) for _ in range(40)]
    for spell in (bytes.hex, lambda value: base64.b64encode(value).decode()):
        names = [spell(canary) for canary in canaries]
        results, tap, _ = talk(honest("shop", texts(*names[:30])), honest("bank", texts(*names[10:])))
        assert len(results["bank"]) == 20
        said = b"\0".join(envelope.body for envelope in tap.carried)
        assert len(said) > 60 * 32
        for canary, name in zip(canaries, names, strict=True):
            for needle in (*needles(canary), *needles(name.encode())):
                assert needle not in said


def test_the_search_for_canaries_finds_them() -> None:
    canary = secrets.token_bytes(16)
    for leak in (canary, canary.hex().encode(), hashlib.md5(canary).digest()):
        assert any(needle in b"x" + leak + b"y" for needle in needles(canary))


def bodies(tap: Tap, kind: type[Message]) -> list[bytes]:
    return [envelope.body for envelope in tap.carried if envelope.kind == kind.kind]


def decoded(tap: Tap, kind: type[Message], sender: str) -> Any:
    (body,) = [e.body for e in tap.carried if e.kind == kind.kind and e.sender == sender]
    return decode(kind, body)


def test_secrets_do_not_come_from_the_seed() -> None:
    ids = numbers(1, 2, 3)
    _, one, _ = talk(honest("shop", ids), honest("bank", ids))
    _, two, _ = talk(honest("shop", ids), honest("bank", ids))
    for kind in (IdKind, BlindedIds, TwiceBlinded):
        assert len(bodies(one, kind)) == 2 and not set(bodies(one, kind)) & set(bodies(two, kind))


def test_the_hash_depends_on_the_run_even_under_one_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ecdh, "new_scalar", lambda: bytes(range(32)))
    _, one, _ = talk(honest("shop", numbers(1)), honest("bank", numbers(1)))
    _, two, _ = talk(honest("shop", numbers(1)), honest("bank", numbers(1)))
    assert len({*bodies(one, BlindedIds), *bodies(two, BlindedIds)}) == 2  # both sides agree within a run


def test_the_blinding_depends_on_the_run_even_under_one_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ecdh, "_run_key", lambda mine, theirs: bytes(32))
    ids = numbers(1)
    said = [
        body
        for _ in range(2)
        for body in bodies(talk(honest("shop", ids), honest("bank", ids))[1], BlindedIds)
    ]
    assert len(set(said)) == 4


def test_points_leave_in_a_secret_order(monkeypatch: pytest.MonkeyPatch) -> None:
    scalar, key, ids = bytes(range(32)), bytes(32), canonical(numbers(*range(100)))
    plain = curve.multiply(scalar, curve.encode_points(key, ids.values.to_pylist()))
    order, points = ecdh.blind(key, scalar, ids)
    np.testing.assert_array_equal(points, plain[order])
    assert sorted(order) == list(range(100)) and order.tolist() != list(range(100))
    np.random.seed(0)
    first, _ = ecdh.blind(key, scalar, ids)
    np.random.seed(0)
    assert first.tolist() != ecdh.blind(key, scalar, ids)[0].tolist()
    # Where row 0 of 4 goes: 400 draws, 100 expected at each place, six standard deviations allowed.
    places = [int(np.flatnonzero(ecdh.secret_order(4) == 0)[0]) for _ in range(400)]
    assert all(48 < places.count(place) < 152 for place in range(4))


def test_replies_to_who_learns_the_size_alone_come_in_a_secret_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the reply to the first of 4 points is: 100 runs, 25 expected in each place, 18 more refused."""
    monkeypatch.setattr(ecdh, "new_scalar", lambda: bytes(range(32)))
    ids = canonical(numbers(1, 2, 3, 4))
    places = []
    for _ in range(100):
        _, tap, _ = talk(
            lambda me: ecdh.meet(me, "shop", ids, "size"), lambda me: ecdh.meet(me, "bank", ids, "size")
        )
        asked = decoded(tap, BlindedIds, "bank").points
        marks = decoded(tap, TwiceBlinded, "shop").marks
        product = curve.multiply(bytes(range(32)), asked)[0, : marks.shape[1]]
        places.append(marks.tolist().index(product.tolist()))
    assert np.bincount(places, minlength=4).max() < 43 and set(places) == {0, 1, 2, 3}


@pytest.mark.parametrize("learns", ["both", "size"])
def test_sets_of_non_members_look_alike_to_a_peer(
    learns: ecdh.Learns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shop knows the run's key and its own secret. It makes of every id that there could be all that it
    can: the point, that under its secret once and twice, the same of all points that came, and the marks.
    Which of these are equal says how many ids are shared, and nothing of the rest."""
    keys: list[bytes] = []
    run_key = ecdh._run_key

    def kept(mine: Any, theirs: bytes) -> bytes:
        keys.append(run_key(mine, theirs))
        return keys[-1]

    monkeypatch.setattr(ecdh, "_run_key", kept)
    shop, possible = numbers(*range(5)), [str(i).encode() for i in range(30)]

    def view(bank: list[int]) -> list[int]:
        scalars: list[bytes] = []
        blind = ecdh.blind

        def watched(key: bytes, scalar: bytes, ids: CanonicalIds) -> Any:
            if len(ids) == 5:
                scalars.append(scalar)
            return blind(key, scalar, ids)

        with monkeypatch.context() as patched:
            patched.setattr(ecdh, "blind", watched)
            _, tap, _ = talk(
                lambda me: ecdh.meet(me, "shop", canonical(numbers(*bank)), learns),
                lambda me: ecdh.meet(me, "bank", canonical(shop), learns),
            )
        (scalar,) = scalars
        came, marks = decoded(tap, BlindedIds, "bank").points, decoded(tap, TwiceBlinded, "bank").marks
        guesses = curve.encode_points(keys[-1], possible)
        forms = [guesses, came]
        for _ in range(2):
            forms += [curve.multiply(scalar, form) for form in forms[-2:]]
        made = [{row.tobytes() for row in form[:, : marks.shape[1]]} for form in (*forms, marks)]
        return [len(one & other) for one in made for other in made]

    first, second = view([3, 4, 10, 11, 12, 13, 14]), view([3, 4, 20, 21, 22, 23, 24])
    assert first == second
    assert sorted(set(first)) == [0, 2, 5, 7, 30]  # 2 are shared; the rest are sizes of one form


def test_enough_bits_are_compared() -> None:
    for n, m in [(0, 5), (1, 1), (2, 2), (1000, 30_000), (10**6, 10**6), (2**30, 2**31)]:
        for runs in (1, 4, 40):
            assert ecdh.mark_width(n, m, runs) == int(
                np.ceil((40 + np.log2(float(max(n * m * runs, 1)))) / 8)
            )
    assert ecdh.mark_width(1, 2**400) == 32


@pytest.mark.parametrize("swapped", [False, True])
def test_integers_against_text_is_an_error_that_names_both_types(swapped: bool) -> None:
    bank, shop = (texts("1"), numbers(1)) if swapped else (numbers(1), texts("1"))
    with pytest.raises(
        AlignmentError, match=r"^(bank|shop)/psi: the ids of .*; cast one side, or let"
    ) as refused:
        talk(honest("shop", bank), honest("bank", shop))
    bank_has, shop_has = ("text", "integers") if swapped else ("integers", "text")
    assert f"bank are {bank_has}" in str(refused.value) and f"shop are {shop_has}" in str(refused.value)


def points(*coordinates: int) -> curve.Points:
    return np.frombuffer(b"".join(u.to_bytes(32, "little") for u in coordinates), np.uint8).reshape(-1, 32)


def dishonest(*says: Message) -> Role:
    """A shop that says these messages in turn, whatever it hears."""

    async def role(me: Party) -> None:
        for message in says:
            await me.send("bank", message)
            await me.recv("bank", type(message))

    return role


KIND = IdKind(tag="int", count=2, public_key=points(9)[0])
GOOD = BlindedIds(points=curve.encode_points(bytes(32), [b"1", b"2"]))
ORDER_8 = max(curve.SMALL_ORDER)
BAD_POINTS = [
    (points(9), "expected the 2 points announced, got 1"),
    (points(9, 16, 25), "expected the 2 points announced, got 3"),
    (points(9, 9), "1 of 2 points come twice; ids are distinct"),
    (points(9, 0), "of 2 points 0 .* and 1 are of small order"),
    (points(9, 1), "of 2 points 0 .* and 1 are of small order"),
    (points(9, ORDER_8), "of 2 points 0 .* and 1 are of small order"),
    (points(9, 2**255 - 19 + 9), "of 2 points 1 are not below the field's prime"),
    (points(9, 2), "of 2 points 0 .* 1 lie on the twist"),
]


@pytest.mark.parametrize(("wrong", "reason"), BAD_POINTS)
def test_points_that_no_honest_peer_sends(wrong: curve.Points, reason: str) -> None:
    expected = f"^bank/psi: protocols.BlindedIds/1 from shop in 'psi': {reason}"
    with pytest.raises(ProtocolError, match=expected):
        talk(honest("shop", numbers(1, 2)), dishonest(KIND, BlindedIds(points=wrong)))


A = 486662  # of the curve v^2 = u^3 + A u^2 + u


def halves(point: np.ndarray) -> tuple[int, int]:
    """u and one v of a point of the curve."""
    u, p = int.from_bytes(point.tobytes(), "little"), int(curve.P)
    square = u * (u * (u + A) + 1) % p
    v = pow(square, (p + 3) // 8, p)
    return u, v if v * v % p == square else v * pow(2, (p - 1) // 4, p) % p


def together(one: tuple[int, int], other: tuple[int, int]) -> set[bytes]:
    """The sum and the difference of two points: which is which depends on the v that was taken."""
    (u, v), (x, y), p = one, other, int(curve.P)
    return {
        ((pow((y * sign - v) * pow(x - u, -1, p), 2, p) - A - u - x) % p).to_bytes(32, "little")
        for sign in (1, -1)
    }


def test_an_announced_id_buys_one_yes_or_no_which_may_be_about_two_ids_together() -> None:
    """What the module says of a cheat: it announces three ids, asks about three pairs, and sees of each if
    both are here. Of a pair that is not, it learns no more; and if it asks about one more, nothing at all."""
    here, pairs = list(range(30)), [(3, 7), (11, 99), (98, 97)]
    learnt: list[bool] = []

    def cheat(announced: int) -> Role:
        async def role(me: Party) -> None:
            agreed = await ecdh.agree(me, "shop", canonical(numbers(*range(announced))), "ecdh")
            each = [[halves(curve.encode_points(agreed.key, [b"%d" % i])[0]) for i in pair] for pair in pairs]
            asked = np.stack([np.frombuffer(min(together(*pair)), np.uint8) for pair in each])
            await me.send("shop", BlindedIds(points=asked))
            theirs = [halves(point) for point in (await me.recv("shop", BlindedIds)).points]
            width = ecdh.mark_width(announced, len(here))
            sums = {
                u[:width] for i, one in enumerate(theirs) for two in theirs[:i] for u in together(one, two)
            }
            answer = (await me.recv("shop", TwiceBlinded)).marks
            learnt.extend(mark.tobytes() in sums for mark in answer)
            await me.send("shop", TwiceBlinded(marks=np.zeros((len(here), width), np.uint8)))

        return role

    with pytest.raises(ProtocolError, match="expected the 2 points announced, got 3"):
        talk(cheat(2), honest("bank", numbers(*here)))
    assert learnt == []
    talk(cheat(3), honest("bank", numbers(*here)))
    assert learnt == [True, False, False]


@pytest.mark.parametrize("count", [-1, ecdh.MOST_IDS + 1, 2**80])
def test_a_number_of_ids_that_nobody_has_is_refused_before_anything_is_made_ready(count: int) -> None:
    many = IdKind.model_construct(tag="int", count=count, public_key=points(9)[0])
    with pytest.raises(ProtocolError, match=r"^bank/psi: .*protocols.IdKind/1 from shop"):
        talk(honest("shop", numbers(1, 2)), dishonest(many))


@pytest.mark.parametrize("shape", [(2, 5), (2, 7), (1, 6), (3, 6), (0, 6), (2, 0)])
def test_an_answer_of_another_size(shape: tuple[int, int]) -> None:
    answer = TwiceBlinded(marks=np.zeros(shape, np.uint8))
    with pytest.raises(ProtocolError, match=r"^bank/psi: protocols.TwiceBlinded/1 from shop .*\(2, 6\), got"):
        talk(honest("shop", numbers(1, 2)), dishonest(KIND, GOOD, answer))


@pytest.mark.parametrize("u", sorted(curve.SMALL_ORDER))
def test_a_public_key_of_small_order(u: int) -> None:
    weak = IdKind(tag="int", count=2, public_key=points(u)[0])
    with pytest.raises(
        ProtocolError, match=r"^bank/psi: protocols.IdKind/1 from shop in 'psi': the public key"
    ):
        talk(honest("shop", numbers(1, 2)), dishonest(weak))


def test_a_made_up_answer_of_the_right_size_matches_nothing() -> None:
    answer = TwiceBlinded(marks=np.frombuffer(secrets.token_bytes(12), np.uint8).reshape(2, 6))
    results, _, _ = talk(honest("shop", numbers(1, 2)), dishonest(KIND, GOOD, answer))
    assert results["bank"].tolist() == []


def test_the_work_is_declared() -> None:
    network = Network(latency=0.05)
    _, _, ledger = talk(honest("shop", numbers(*range(6))), honest("bank", numbers(*range(4, 9))), network)
    for party, own, other in (("bank", 6, 5), ("shop", 5, 6)):
        assert ledger.compute[party].unpriced == 0
        assert ledger.compute[party].operations == {
            "elligator2": own,
            "x25519": own + other + 2,
            "point_check": other,
            "id_match": own + other,
        }


def test_progress_is_told() -> None:
    seen: list[tuple[str, int, int]] = []

    async def watched(me: Party) -> Any:
        me.desk.on_progress = lambda step, done, total: seen.append((step, done, total))
        return await intersect(me, "shop", canonical(numbers(1, 2, 3)))

    talk(watched, honest("bank", numbers(1)))
    assert seen == [("ids blinded for shop", 3, 4), ("ids blinded for shop", 4, 4)]
