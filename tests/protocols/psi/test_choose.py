"""Which protocol two parties take: both the same one, and the result does not depend on it."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError, ProtocolError
from protocols.psi import choose, kkrt
from protocols.psi.choose import LARGE, Protocol, check_protocol, chosen
from protocols.psi.ecdh import BlindedIds, Learns, TwiceBlinded
from protocols.psi.ids import canonical
from protocols.psi.kkrt import FunctionValues
from tests.protocols.psi.test_ecdh import Role, bodies, numbers, talk


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
