"""KKRT: equal to pandas' intersection and to ECDH's, blind to the rest, firm with a peer that lies."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from math import comb
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ConfigError, PolicyError, ProtocolError
from protocols.hazmat import oprf_kernels
from protocols.hazmat.blake2s import row_digests
from protocols.hazmat.cuckoo import fill, third_of
from protocols.hazmat.oblivious import Columns, as_rows
from protocols.party import Party
from protocols.psi import ecdh, kkrt, oprf
from protocols.psi.ecdh import IdKind, Learns, Met
from protocols.psi.ids import CanonicalIds, canonical
from protocols.psi.kkrt import (
    FunctionValues,
    MaskedCodes,
    SeedChoices,
    SeedOffer,
    TableHash,
    ValuesFound,
)
from protocols.psi.oprf import CODE, Own, fill_table, masked, match, unmask, values_of
from protocols.wire.codec import decode
from protocols.wire.ledger import Ledger
from protocols.wire.message import Message
from protocols.wire.transport import Network
from tests.protocols.psi.test_ecdh import AtLeast, Role, Tap, bodies, needles, numbers, talk, texts

COUNTER: dict[Learns, Learns] = {"both": "both", "me": "peer", "peer": "me"}


def role(peer: str, ids: pd.Series, learns: Learns = "both") -> Role:
    known = canonical(ids)
    return lambda me: kkrt.meet(me, peer, known, learns)


def meeting(
    bank: pd.Series, shop: pd.Series, bank_learns: Learns = "both", network: Network | None = None
) -> tuple[dict[str, Met], Tap, Ledger]:
    return talk(role("shop", bank, bank_learns), role("bank", shop, COUNTER[bank_learns]), network)


def found(ids: pd.Series, met: Met) -> list[Any]:
    assert met.rows is not None and met.rows.dtype == np.int64 and met.size == len(met.rows)
    return ids.iloc[met.rows].tolist()


def by_bytes(ids: pd.Index) -> list[Any]:
    return sorted(ids, key=lambda value: str(value).encode())


some = st.lists(st.integers(-20, 20) | st.integers(-(2**63), 2**63 - 1), unique=True, max_size=40)


@settings(max_examples=12, deadline=None)
@given(some, some, st.booleans())
def test_both_find_the_pandas_intersection(a: list[int], b: list[int], as_text: bool) -> None:
    bank, shop = numbers(*dict.fromkeys(a + b[:2])), numbers(*b)
    if as_text:
        bank, shop = texts(*map(str, bank)), texts(*map(str, shop))
    expected = by_bytes(pd.Index(bank).intersection(pd.Index(shop)))
    results, _, _ = meeting(bank, shop)
    assert found(bank, results["bank"]) == found(shop, results["shop"]) == expected


def compute(bank: pd.Series, shop: pd.Series) -> tuple[Met, list[int]]:
    """What the receiver bank learns, and which rows of the shop it finds, without messages and points."""
    receiver, sender = canonical(bank), canonical(shop)
    key, width = secrets.token_bytes(32), ecdh.mark_width(len(receiver), len(sender))
    own, other = Own.of(receiver, key, width), Own.of(sender, key, width)
    zeros, ones = (np.frombuffer(secrets.token_bytes(16 * CODE), np.uint8).reshape(-1, 16) for _ in range(2))
    secret = np.frombuffer(secrets.token_bytes(CODE // 8), np.uint8)
    bits, s = np.unpackbits(secret, bitorder="little")[:, None], secret.view(np.uint64)
    digests, table, tried = fill_table(own, None)
    mine, q = np.empty((len(receiver), width), np.uint8), np.empty((len(table), 7), np.uint64)
    rows = masked(own, digests, table, 0, (Columns(zeros), Columns(ones)), mine, None)
    unmask(Columns(np.where(bits, ones, zeros)), rows, s, q, None)
    digests = other.digests(None)
    bins = other.bins(digests, third_of(len(receiver)), tried)
    met, places = match(own, table, mine, values_of(other, digests, bins, q, s, None), None)
    return met, sender.rows[places].tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=3), unique=True, max_size=60), st.data())
def test_the_functions_meet_in_the_intersection(pool: list[str], data: st.DataObject) -> None:
    parts = [[value for value in pool if data.draw(st.booleans())] for _ in range(2)]
    bank, shop = (texts(*data.draw(st.permutations(part))) for part in parts)
    met, places = compute(bank, shop)
    expected = by_bytes(pd.Index(bank).intersection(pd.Index(shop)))
    assert len(places) == len(expected) and met.size == len(expected)
    if all(value.isascii() for value in expected):  # else NFC may change it
        assert found(bank, met) == expected and by_bytes(pd.Index(shop.iloc[places])) == expected


def test_it_finds_what_ecdh_finds_in_any_order_of_the_tables() -> None:
    rng = np.random.default_rng(0)
    bank, shop = numbers(*rng.permutation(400)), numbers(*rng.permutation(np.arange(150, 700)))
    results, _, _ = meeting(bank, shop)
    blinded, _, _ = talk(
        lambda me: ecdh.meet(me, "shop", canonical(bank), "both"),
        lambda me: ecdh.meet(me, "bank", canonical(shop), "both"),
    )
    for party in ("bank", "shop"):
        np.testing.assert_array_equal(results[party].rows, blinded[party].rows)
        assert results[party].size == blinded[party].size == 250


RECEIVER: list[type[Message]] = [IdKind, SeedOffer, TableHash, MaskedCodes]
SENDER: list[type[Message]] = [IdKind, SeedChoices, FunctionValues]


@pytest.mark.parametrize(
    ("bank", "shop", "learns", "receiver"),
    [
        (3, 5, "both", "bank"),
        (5, 3, "both", "shop"),
        (4, 4, "both", "bank"),
        (0, 4, "both", "bank"),
        (3, 5, "peer", "shop"),
        (5, 3, "me", "bank"),
        (5, 3, "peer", "shop"),
    ],
)
def test_the_smaller_side_receives_and_tells_only_who_is_to_learn(
    bank: int, shop: int, learns: Learns, receiver: str
) -> None:
    ids = {"bank": numbers(*range(bank)), "shop": numbers(*range(2, 2 + shop))}
    results, tap, _ = meeting(ids["bank"], ids["shop"], learns)
    sender = "shop" if receiver == "bank" else "bank"
    said = {p: [e.kind for e in tap.carried if e.sender == p] for p in ids}
    told: list[type[Message]] = [ValuesFound] if learns == "both" else []
    assert said[receiver] == [kind.kind for kind in (*RECEIVER, *told)]
    assert said[sender] == [kind.kind for kind in SENDER]
    expected = by_bytes(pd.Index(ids["bank"]).intersection(pd.Index(ids["shop"])))
    assert found(ids[receiver], results[receiver]) == expected
    if told:
        assert found(ids[sender], results[sender]) == expected
    else:
        assert results[sender] == Met(None, None)


def test_the_size_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'/psi: KKRT cannot show the size alone; use protocol="ecdh"$'):
        talk(role("shop", numbers(1), "size"), role("bank", numbers(1), "size"))


def test_more_ids_than_the_code_suffices_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kkrt, "MOST", 3)
    meeting(numbers(1, 2, 3), numbers(1, 2, 3))
    with pytest.raises(ConfigError, match="KKRT takes 3 at most"):
        meeting(numbers(1, 2, 3), numbers(1, 2, 3, 4))


def test_codes_and_values_have_the_bits_that_are_stated() -> None:
    # All 448-bit words within 127 places of one, and the 3·m pairs of a code and another in its bin.
    near = sum(comb(CODE, places) for places in range(128)) / 2**CODE
    assert 3 * kkrt.MOST * near < 2**-40 < 3 * 2 * kkrt.MOST * near
    assert ecdh.mark_width(kkrt.MOST, kkrt.MOST) <= 16  # bytes of a digest


def test_values_are_as_wide_as_many_runs_of_this_size_need() -> None:
    def one_of_many(peer: str) -> Role:
        async def body(me: Party) -> Met:
            agreed = await ecdh.agree(me, peer, canonical(numbers(1, 2)), "kkrt")
            return await kkrt.compare(
                me, peer, canonical(numbers(1, 2)), "both", agreed.key, agreed.count, 2**9
            )

        return body

    results, tap, _ = talk(one_of_many("shop"), one_of_many("bank"))
    assert results["bank"].size == 2 and of_kind(tap, FunctionValues).values.shape == (3, 2, 7)  # 40 + 2 + 9


def test_no_id_and_no_hash_of_one_is_ever_sent() -> None:
    canaries = [secrets.token_bytes(16) for _ in range(40)]
    for spell in (bytes.hex, lambda value: base64.b64encode(value).decode()):
        names = [spell(canary) for canary in canaries]
        results, tap, _ = meeting(texts(*names[:30]), texts(*names[10:]))
        assert results["bank"].size == 20
        said = b"\0".join(envelope.body for envelope in tap.carried)
        assert len(said) > 60 * 56
        for canary, name in zip(canaries, names, strict=True):
            for needle in (*needles(canary), *needles(name.encode())):
                assert needle not in said


def test_nothing_that_is_secret_comes_from_the_seed_or_stays_for_the_next_run() -> None:
    ids = numbers(1, 2, 3)
    taps = [meeting(ids, ids)[1] for _ in range(2)]
    for kind in (SeedOffer, SeedChoices, MaskedCodes, FunctionValues):
        one, two = (bodies(tap, kind) for tap in taps)
        assert len(one) == len(two) == 1 and one != two


def of_kind(tap: Tap, kind: type[Message]) -> Any:
    (body,) = bodies(tap, kind)
    return decode(kind, body, sender="", scope="")


def test_values_leave_in_a_secret_order(monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[list[int]] = []

    def kept(n: int) -> Any:
        order = ecdh.secret_order(n)
        orders.append(order.tolist())
        return order

    monkeypatch.setattr(kkrt, "secret_order", kept)
    bank, shop = numbers(*range(10)), numbers(*range(100))
    for _ in range(2):
        _, tap, _ = meeting(bank, shop)
        assert of_kind(tap, ValuesFound).mask.tolist() == [place < 10 for place in orders[-1]]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len(orders) == 2 and orders[0] != orders[1] and list(range(100)) not in orders


def test_digests_bins_and_codes_are_of_this_run_only() -> None:
    ids = canonical(numbers(*range(300)))
    one, two = (Own.of(ids, bytes([which]) * 32, 10) for which in (1, 2))
    digests = one.digests(None)
    assert (digests != two.digests(None)).any(axis=1).all()
    assert (one.codes(digests) != two.codes(digests)).all()
    rows = [one.bins(digests, 10**6, 0), two.bins(digests, 10**6, 0), one.bins(digests, 10**6, 1)]
    for other in rows[1:]:
        assert (rows[0] != other).any(axis=1).all()


def own_of(ids: pd.Series) -> Own:
    return Own.of(canonical(ids), bytes(32), 10)


def pairs_of_seeds() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (CODE, 16), np.uint8), rng.integers(0, 256, (CODE, 16), np.uint8)


def unmasked(own: Own, table: Any, digests: Any) -> np.ndarray:
    """The codes under the masks, which the receiver alone could take away: bits (bins, 448)."""
    zeros, ones = pairs_of_seeds()
    mine = np.empty((len(own.ids), 10), np.uint8)
    rows = masked(own, digests, table, 0, (Columns(zeros), Columns(ones)), mine, None)
    words = -(-len(table) // 64)
    masks = as_rows(Columns(zeros).take(words) ^ Columns(ones).take(words))[: len(table)]
    return np.unpackbits((rows ^ masks).view(np.uint8), axis=1)


def test_dummies_look_like_the_codes_of_ids_and_are_drawn_anew() -> None:
    own = own_of(numbers(*range(2000)))
    digests, table, _ = fill_table(own, None)
    first, second = unmasked(own, table, digests), unmasked(own, table, digests)
    full = table >= 0
    assert (first[full] == second[full]).all()  # codes do not change within a run, dummies do
    assert (first[~full] != second[~full]).any(axis=1).all()
    for rows in (first[full], first[~full]):
        n = len(rows)
        assert n > 800 and len(np.unique(rows, axis=0)) == n
        # Each place is 1 in half of the rows, and each row has ones in half of its places: six deviations.
        assert (abs(rows.mean(axis=0) - 0.5) < 3 / np.sqrt(n)).all()
        assert (abs(rows.mean(axis=1) - 0.5) < 3 / np.sqrt(CODE)).all()
        # The number of ones in a row is binomial: its variance is that of 448 fair coins, within a fifth.
        assert abs(rows.sum(axis=1).var() / (CODE / 4) - 1) < 0.2


def test_the_sender_sees_masks_that_it_does_not_know() -> None:
    """Of the same table under other seeds every row is another, in half of its bits."""
    own = own_of(numbers(*range(500)))
    digests, table, _ = fill_table(own, None)
    mine = np.empty((500, 10), np.uint8)
    seeds = np.frombuffer(secrets.token_bytes(4 * 16 * CODE), np.uint8).reshape(4, CODE, 16)
    one, two = (
        masked(own, digests, table, 0, (Columns(a), Columns(b)), mine, None)
        for a, b in (seeds[:2], seeds[2:])
    )
    differ = np.unpackbits((one ^ two).view(np.uint8), axis=1)
    assert (abs(differ.mean(axis=1) - 0.5) < 3 / np.sqrt(CODE)).all()


def test_kernels_give_what_libraries_give_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(secrets, "token_bytes", lambda size: bytes(size % 251 for _ in range(size)))
    names = [f"user-{i:05}" * (1 + i % 7) for i in range(3000)] + [""]
    receiver, sender = own_of(texts(*names[:2000])), own_of(texts(*names[1000:]))
    zeros, ones = pairs_of_seeds()
    s = rng.integers(0, 2**64, 7, np.uint64)
    results = []
    for fast in (None, oprf_kernels):
        digests, table, tried = fill_table(receiver, fast)
        mine, q = np.empty((2000, 10), np.uint8), np.empty((len(table), 7), np.uint64)
        rows = masked(receiver, digests, table, 0, (Columns(zeros), Columns(ones)), mine, fast)
        unmask(Columns(zeros), rows, s, q, fast)
        theirs = sender.digests(fast)
        values = values_of(sender, theirs, sender.bins(theirs, third_of(2000), tried), q, s, fast)
        marks = np.concatenate([np.stack([mine] * 3), values], axis=1)  # half of them equal
        met, places = match(receiver, table, mine, np.ascontiguousarray(marks[:, 1000:3500]), fast)
        results.append([digests, table, mine, rows, q, theirs, values, met.rows, places])
    for plain, compiled in zip(*results, strict=True):
        assert len(plain)
        np.testing.assert_array_equal(plain, compiled)
    assert tried == 0


def test_where_one_hash_does_not_serve_another_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def reluctant(bins: Any, third: int, fast: Any) -> Any:
        calls.append(third)
        return None if len(calls) < 3 else fill(bins, third, fast)

    monkeypatch.setattr(oprf, "fill", reluctant)
    bank, shop = numbers(*range(20)), numbers(*range(10, 60))
    results, tap, _ = meeting(bank, shop)
    assert of_kind(tap, TableHash).tried == 2
    assert found(bank, results["bank"]) == list(range(10, 20)) == found(shop, results["shop"])
    monkeypatch.setattr(oprf, "fill", lambda *_: None)
    with pytest.raises(ProtocolError, match="^bank/psi: no table of 20 ids could be filled by 16 hashes"):
        meeting(bank, shop)


class Liar(Party):
    """A party that says something else instead of its message of one kind."""

    told: type[Message]
    lie: Callable[[Any], Message]

    async def send(self, to: str, message: Message) -> None:
        said = type(self).lie(message) if isinstance(message, self.told) else message
        await Party.send(self, to, said)


def lying(peer: str, ids: pd.Series, kind: type[Message], say: Callable[[Any], Message]) -> Role:
    class Twisted(Liar):
        told, lie = kind, staticmethod(say)

    known = canonical(ids)
    return lambda me: kkrt.meet(Twisted(me.desk, me.scope), peer, known, "both")


FEW, MANY = numbers(1, 2), numbers(*range(2, 7))  # who has few receives
POINT = np.frombuffer((2).to_bytes(32, "little"), np.uint8)  # off the curve


def as_sender(lie: type[Message], field: str, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    return FEW, MANY, lie, field, change


def as_receiver(lie: type[Message], field: str, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    return MANY, FEW, lie, field, change


WRONG = [
    (as_sender(SeedChoices, "points", lambda a: np.stack([*a[:-1], POINT])), "point 447 is not in the group"),
    (as_sender(FunctionValues, "values", lambda a: a[:, 1:]), r"of shape \(3, 5, 6\), got \(3, 4, 6\)"),
    (as_sender(FunctionValues, "values", lambda a: a[:, :, 1:]), r"of shape \(3, 5, 6\), got \(3, 5, 5\)"),
    (as_receiver(SeedOffer, "point", lambda a: POINT), "the point is not in the group"),
    (as_receiver(MaskedCodes, "rows", lambda a: a[1:]), r"of shape \(291, 7\), got \(290, 7\)"),
    (as_receiver(ValuesFound, "mask", lambda a: a[1:]), r"of shape \(5,\), got \(4,\)"),
    (as_receiver(ValuesFound, "mask", lambda a: ~(a & False)), "at most 2 ids to be shared, got 5"),
]


@pytest.mark.parametrize(("case", "reason"), WRONG)
def test_what_no_honest_peer_sends(case: Any, reason: str) -> None:
    bank, shop, kind, field, change = case
    expected = f"^bank/psi: protocols.{kind.__name__}/1 from shop in 'psi': .*{reason}"

    def lie(message: Any) -> Message:
        wrong: Message = kind(**{field: np.ascontiguousarray(change(getattr(message, field)))})
        return wrong

    with pytest.raises(ProtocolError, match=expected):
        talk(role("shop", bank), lying("bank", shop, kind, lie))


def test_one_value_for_several_ids_is_refused() -> None:
    def lie(message: FunctionValues) -> Message:
        return FunctionValues(values=np.ascontiguousarray(message.values[:, [0, 0, 2, 3]]))

    ids = numbers(*range(4))
    expected = (
        "^bank/psi: protocols.FunctionValues/1 from shop in 'psi': an id or a value matches twice; [a-z ]*$"
    )
    with pytest.raises(ProtocolError, match=expected):
        talk(role("shop", ids), lying("bank", ids, FunctionValues, lie))


def test_made_up_values_match_nothing() -> None:
    def lie(message: FunctionValues) -> Message:
        made = np.frombuffer(secrets.token_bytes(message.values.size), np.uint8)
        return FunctionValues(values=made.reshape(message.values.shape))

    results, _, _ = talk(role("shop", FEW), lying("bank", MANY, FunctionValues, lie))
    assert results["bank"].size == 0


@pytest.mark.parametrize("tried", [-1, 16])
def test_a_hash_that_there_is_not(tried: int) -> None:
    def lie(message: TableHash) -> Message:
        return TableHash.model_construct(tried=tried)

    with pytest.raises(ProtocolError, match="^bank/psi: .*protocols.TableHash/1"):
        talk(role("shop", MANY), lying("bank", FEW, TableHash, lie))


def test_the_guard_is_asked_before_anything_of_the_ids_leaves() -> None:
    said: list[str] = []

    async def guarded(me: Party) -> Any:
        me.desk.guard = AtLeast(6)
        try:
            return await kkrt.meet(me, "bank", canonical(MANY), "both")
        finally:
            said[:] = [entry.kind for entry in me.desk.ledger if entry.sender == "shop"]

    with pytest.raises(PolicyError, match=r"^shop/psi: min_intersection"):
        talk(role("shop", FEW), guarded)
    assert said == [IdKind.kind]


def test_the_work_is_declared() -> None:
    _, _, ledger = meeting(numbers(*range(6)), numbers(*range(4, 12)), network=Network(latency=0.05))
    bins = 3 * third_of(6)
    for party, expected in {
        "bank": {
            "x25519": 2,
            "base_ot": 1 + CODE,
            "id_hash": 6,
            "cuckoo_insert": 6,
            "oprf_row": 2 * bins,
            "oprf_value": bins,
            "id_match": 6 + 3 * 8,
        },
        "shop": {
            "x25519": 2,
            "base_ot": CODE,
            "id_hash": 8,
            "oprf_row": bins,
            "oprf_value": 24,
            "id_match": 8,
        },
    }.items():
        assert ledger.compute[party].unpriced == 0
        assert ledger.compute[party].operations == expected


def test_sets_of_non_members_look_alike_to_the_receiver() -> None:
    """It knows both streams of columns and all codes. Of every id that there could be it hashes, in each bin
    of the id, whatever it can put together of the bin's rows, its own code there and the id's. What is equal
    to a value that came says how many ids are shared, and nothing of the rest."""
    bank, possible = numbers(*range(30)), numbers(*range(90))
    receiver, every, third = own_of(bank), own_of(possible), third_of(30)

    def view(shop: pd.Series) -> list[int]:
        seeds = np.frombuffer(secrets.token_bytes(2 * 16 * CODE), np.uint8).reshape(2, CODE, 16)
        secret = np.frombuffer(secrets.token_bytes(CODE // 8), np.uint8)
        bits, s = np.unpackbits(secret, bitorder="little")[:, None], secret.view(np.uint64)
        digests, table, tried = fill_table(receiver, None)
        q = np.empty((len(table), 7), np.uint64)
        both = Columns(seeds[0]), Columns(seeds[1])
        rows = masked(receiver, digests, table, 0, both, np.empty((30, 10), np.uint8), None)
        unmask(Columns(np.where(bits, seeds[1], seeds[0])), rows, s, q, None)
        sender = own_of(shop)
        of = sender.digests(None)
        came = values_of(sender, of, sender.bins(of, third, tried), q, s, None)
        said = [{value.tobytes() for value in part} for part in came]
        words = -(-len(table) // 64)
        t, other = (as_rows(Columns(one).take(words))[: len(table)] for one in seeds)
        guessed = every.digests(None)
        codes, bins = every.codes(guessed), every.bins(guessed, third, tried)
        found = []
        for part in range(3):
            at = bins[:, part]
            own = (t ^ other ^ rows)[at]  # the code in that bin
            for row in (t[at], other[at], rows[at]):
                for form in (row, row ^ own, row ^ codes, row ^ own ^ codes):
                    marks = row_digests(b"vfl oprf", form, at.astype(np.uint64))
                    found.append(len({mark.tobytes()[:10] for mark in marks} & said[part]))
        # Of t as it stands, and of t under two codes that are one, it is the value of its own id.
        return [sum(found[place::12]) for place in range(12)]

    first = view(numbers(*range(20, 30), *range(30, 60)))
    assert first == view(numbers(*range(20, 30), *range(60, 90)))
    assert first == [10, 0, 0, 10, *[0] * 8]


def test_a_receiver_that_breaks_the_rules_could_try_any_number_of_ids() -> None:
    """What the module, the guide and the threat model warn of, carried out: KKRT is for semi-honest parties.

    The receiver alters the code of an id that the sender has in eight places, and finds those eight of the
    sender's bits by trying. Of 56 such ids it has them all, and with them every function at every id.
    """
    known, hidden = texts(*(f"known {i}" for i in range(CODE // 8))), texts("not announced", "nor this")
    receiver, third = own_of(known), third_of(len(known))
    zeros, ones = pairs_of_seeds()
    digests, table, tried = fill_table(receiver, None)
    mine = np.empty((len(known), 10), np.uint8)
    rows = masked(receiver, digests, table, 0, (Columns(zeros), Columns(ones)), mine, None)
    altered = (255 * np.eye(CODE // 8, dtype=np.uint8)).view(np.uint64)
    bins = [int(np.flatnonzero(table == item)[0]) for item in range(len(known))]
    rows[bins] ^= altered

    def values(s: np.ndarray, ids: pd.Series) -> set[bytes]:
        """What a sender with the bits s says of ids."""
        bits, q = np.unpackbits(s, bitorder="little")[:, None], np.empty((len(table), 7), np.uint64)
        unmask(Columns(np.where(bits, ones, zeros)), rows, s.view(np.uint64), q, None)
        own = own_of(ids)
        of = own.digests(None)
        said = values_of(own, of, own.bins(of, third, tried), q, s.view(np.uint64), None)
        return {value.tobytes() for value in said.reshape(-1, 10)}

    secret = np.frombuffer(secrets.token_bytes(CODE // 8), np.uint8)
    said = values(secret, pd.concat([known, hidden]))
    t = as_rows(Columns(zeros).take(-(-len(table) // 64)))
    learnt = np.zeros(CODE // 8, np.uint8)
    for place, j in enumerate(bins):
        tries = np.zeros((256, CODE // 8), np.uint8)
        tries[:, place] = range(256)
        found = row_digests(b"vfl oprf", t[j] ^ tries.view(np.uint64), np.full(256, j, np.uint64))
        (learnt[place],) = [k for k in range(256) if found[k].tobytes()[:10] in said]
    assert (learnt == secret).all()
    assert [bool(values(learnt, texts(name)) & said) for name in (*hidden, "absent")] == [True, True, False]


def test_large_sets_go_in_slabs_and_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kkrt, "SLAB", 128)
    seen: dict[str, list[tuple[int, int]]] = {"bank": [], "shop": []}

    def watched(peer: str, ids: CanonicalIds) -> Role:
        async def body(me: Party) -> Any:
            me.desk.on_progress = lambda step, done, total: seen[me.name].append((done, total))
            return await kkrt.meet(me, peer, ids, "both")

        return body

    bank, shop = numbers(*range(200)), numbers(*range(100, 400))
    results, tap, _ = talk(watched("shop", canonical(bank)), watched("bank", canonical(shop)))
    assert found(bank, results["bank"]) == by_bytes(pd.Index(range(100, 200))) == found(shop, results["shop"])
    total = 3 * third_of(200) + 300
    assert len(bodies(tap, MaskedCodes)) == -(-(total - 300) // 128) and len(bodies(tap, FunctionValues)) == 3
    for told in seen.values():
        assert [done for done, _ in told] == sorted({done for done, _ in told})
        assert told[-1] == (total, total) and {out_of for _, out_of in told} == {total}


def test_two_hundred_thousand_ids_a_side() -> None:
    rng = np.random.default_rng(0)
    bank, shop = (pd.Series(rng.permutation(np.arange(at, at + 200_000))) for at in (0, 120_000))
    results, tap, _ = meeting(bank, shop)
    expected = pd.Index(bank).intersection(pd.Index(shop))
    for ids, met in ((bank, results["bank"]), (shop, results["shop"])):
        values = found(ids, met)
        assert set(values) == set(expected) and values == by_bytes(pd.Index(values))
    # 56 bytes a bin, 1.3 bins an id, and three values of 10 bytes an id: what the guide states.
    assert sum(len(envelope.body) for envelope in tap.carried) < 105 * 200_000 + 100_000
