"""Which protocol two parties take: both the same one, and the result does not depend on it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError, PolicyError, ProtocolError
from protocols.party import Party, Unguarded
from protocols.policy.judge import Guard
from protocols.policy.rules import COMPARED, Compared
from protocols.psi import choose, ecdh, kkrt, ring
from protocols.psi.choose import LARGE, Protocol, check_protocol, chosen
from protocols.psi.ecdh import BlindedIds, Learns, TwiceBlinded
from protocols.psi.ids import canonical
from protocols.psi.kkrt import FunctionValues
from tests.protocols.psi.test_ecdh import Role, bodies, numbers, talk
from tests.support.granted import EMPTY, JOB, rule


@pytest.mark.parametrize(
    ("n", "m", "expected"),
    [
        (LARGE, LARGE, "kkrt"),
        (LARGE - 1, LARGE, "ecdh"),
        (LARGE, 4 * LARGE, "kkrt"),
        (LARGE, 4 * LARGE + 1, "ecdh"),
        (kkrt.MOST, kkrt.MOST, "kkrt"),
        (kkrt.MOST, kkrt.MOST + 1, "ecdh"),
        (0, 0, "ecdh"),
        (10_000, 10**7, "ecdh"),  # what keeps a key for longer than a run is taken by name only
    ],
)
def test_large_balanced_sets_take_kkrt(n: int, m: int, expected: str) -> None:
    assert chosen("auto", n, m, "both", True) == chosen("auto", m, n, "peer", True) == expected
    assert chosen("auto", n, m, "size", True) == chosen("auto", n, m, "both", False) == "ecdh"
    for named in ("ecdh", "kkrt", "unbalanced"):
        assert chosen(named, n, m, "both", False) == named


near = st.integers(0, 3 * LARGE) | st.integers(0, 2 * kkrt.MOST)


@given(near, near, st.sampled_from([("both", "both"), ("me", "peer"), ("peer", "me"), ("size", "size")]))
def test_both_sides_decide_alike(n: int, m: int, learns: tuple[Learns, Learns]) -> None:
    assert chosen("auto", n, m, learns[0], True) == chosen("auto", m, n, learns[1], True)


def role(peer: str, count: int, protocol: Protocol, learns: Learns = "both") -> Role:
    ids = canonical(numbers(*range(count)))
    return lambda me: choose.meet(me, peer, ids, learns, protocol)


@pytest.mark.parametrize("protocol", ["auto", "ecdh", "kkrt", "unbalanced"])
def test_the_result_does_not_depend_on_it(
    protocol: Literal["auto", "ecdh", "kkrt", "unbalanced"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "LARGE", 8)
    results, tap, _ = talk(role("shop", 8, protocol), role("bank", 30, protocol))
    for met in results.values():
        np.testing.assert_array_equal(met.rows, np.arange(8))
    assert bool(bodies(tap, FunctionValues)) == (protocol in ("auto", "kkrt"))
    assert bool(bodies(tap, BlindedIds)) == bool(bodies(tap, TwiceBlinded)) == (protocol == "ecdh")


class Lets(Unguarded):
    """A policy that names these."""

    def __init__(self, *protocols: Compared) -> None:
        self.rule = rule(protocols=protocols)

    def protocol(self, name: str) -> None:
        Guard(self.rule, JOB, EMPTY, lambda history: None).protocol(name)

    def lets(self, protocol: str) -> bool:
        return self.rule.lets(protocol)


IDS = canonical(numbers(1, 2, 3))
MEETS: dict[Compared, list[Role]] = {
    "ecdh": [
        lambda me: ecdh.meet(me, "bank", IDS, "both"),
        lambda me: ring.compare(me, ["bank", "telco"], IDS, rows=True, tell=True),
        lambda me: ring.pass_on(me, "bank", ["shop", "telco"], IDS, rows=True, tell=True),
    ],
    "kkrt": [lambda me: kkrt.meet(me, "bank", IDS, "both")],
}


@pytest.mark.parametrize("protocol", ["ecdh", "kkrt", "unbalanced"])
def test_whatever_calls_a_protocol_asks_the_guard_before_anything_leaves(protocol: Compared) -> None:
    """However a method's parameter is called by which a caller chose it."""
    others: list[Compared] = [one for one in COMPARED if one != protocol]
    for meet in [*MEETS.get(protocol, []), role("bank", 3, protocol)]:

        async def guarded(me: Party, meet: Role = meet) -> None:
            me.desk.guard = Lets(*others)
            with pytest.raises(
                PolicyError, match=f"protocols: ids may not be compared by {protocol}; granted"
            ):
                await meet(me)
            assert not len(me.desk.ledger)

        async def waits(me: Party) -> None: ...

        talk(waits, guarded)


@pytest.mark.parametrize(
    ("bank", "shop", "expected"),
    [
        (("ecdh", "kkrt"), ("ecdh", "kkrt"), "kkrt"),
        (("ecdh", "kkrt"), ("ecdh",), "ecdh"),
        (("kkrt",), ("kkrt", "unbalanced"), "kkrt"),
        (("ecdh",), ("kkrt",), "ids may not be compared by ecdh; granted are kkrt"),
        (("ecdh",), ("unbalanced",), "ids may not be compared by auto; granted are unbalanced"),
    ],
)
def test_auto_takes_what_both_let(
    bank: tuple[Compared, ...], shop: tuple[Compared, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "LARGE", 8)

    def guarded(peer: str, lets: tuple[Compared, ...]) -> Role:
        async def body(me: Party) -> Any:
            me.desk.guard = Lets(*lets)
            return await role(peer, 8, "auto")(me)

        return body

    if expected not in COMPARED:
        with pytest.raises(PolicyError, match=f"^shop/psi: protocols: {expected}"):
            talk(guarded("shop", bank), guarded("bank", shop))
        return
    _, tap, _ = talk(guarded("shop", bank), guarded("bank", shop))
    assert bool(bodies(tap, FunctionValues)) == (expected == "kkrt")
    assert bool(bodies(tap, TwiceBlinded)) == (expected == "ecdh")


def test_the_size_alone_stays_with_ecdh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "LARGE", 1)
    results, tap, _ = talk(role("shop", 3, "auto", "size"), role("bank", 2, "auto", "size"))
    assert results["bank"].size == results["shop"].size == 2 and not bodies(tap, FunctionValues)


def test_two_that_were_told_different_protocols_end_with_an_error() -> None:
    with pytest.raises(ProtocolError, match=r"expected protocols\.\w+/1 from (bank|shop) in 'psi', got"):
        talk(role("shop", 3, "ecdh"), role("bank", 3, "kkrt"))


@pytest.mark.parametrize(
    ("protocol", "size_only", "parties", "reason"),
    [
        ("kkrp", False, 2, "protocol='kkrp' should be one of auto, ecdh, kkrt, unbalanced; did you mean"),
        ("kkrt", False, 3, 'protocol="kkrt" is for two parties, got 3; "auto" fits any number'),
        ("kkrt", True, 2, 'protocol="kkrt" cannot show the size alone; use "ecdh" or "auto"'),
        ("unbalanced", False, 3, 'protocol="unbalanced" is for two parties, got 3; "auto" fits any number'),
        ("unbalanced", True, 2, 'protocol="unbalanced" cannot show the size alone; use "ecdh" or "auto"'),
    ],
)
def test_a_protocol_that_does_not_fit_is_refused(
    protocol: str, size_only: bool, parties: int, reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{reason}"):
        check_protocol(protocol, size_only, parties)


@pytest.mark.parametrize("protocol", ["auto", "ecdh"])
@pytest.mark.parametrize(("size_only", "parties"), [(False, 2), (True, 2), (False, 5), (True, 5)])
def test_others_fit_anything(protocol: str, size_only: bool, parties: int) -> None:
    check_protocol(protocol, size_only, parties)
