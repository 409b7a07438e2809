"""The curve's arithmetic: published vectors, and the laws that blinding rests on."""

from __future__ import annotations

import importlib.util
import secrets
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from joblib import parallel_config

from protocols.psi import curve

P = 2**255 - 19
A = 486662
KEY = bytes(range(32))
elements = st.integers(0, P - 1)


def points(*coordinates: int | str) -> curve.Points:
    rows = [bytes.fromhex(u) if isinstance(u, str) else u.to_bytes(32, "little") for u in coordinates]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32)


def is_square(value: int) -> bool:
    return pow(value, (P - 1) // 2, P) in (0, 1)


def on_curve(u: int) -> bool:
    return is_square(u * u * u + A * u * u + u)


def rfc9380_map(r: int) -> int:
    """Section 6.7.1 as it stands there, J = 486662, K = 1, Z = 2."""
    tv = 2 * r * r % P
    x1 = -A * (0 if (1 + tv) % P == 0 else pow(1 + tv, -1, P)) % P
    if x1 == 0:
        x1 = -A % P
    x2 = (-x1 - A) % P
    return x1 if on_curve(x1) else x2


# RFC 9380 appendix J.4.2, curve25519_XMD:SHA-512_ELL2_NU_: u[0] and Q.x.
RFC9380 = [
    (
        "608d892b641f0328523802a6603427c26e55e6f27e71a91a478148d45b5093cd",
        "51125222da5e763d97f3c10fcc92ea6860b9ccbbd2eb1285728f566721c1e65b",
    ),
    (
        "46f5b22494bfeaa7f232cc8d054be68561af50230234d7d1d63d1d9abeca8da5",
        "7d56d1e08cb0ccb92baf069c18c49bb5a0dcd927eff8dcf75ca921ef7f3e6eeb",
    ),
    (
        "235fe40c443766ce7e18111c33862d66c3b33267efa50d50f9e8e5d252a40aaa",
        "3fbe66b9c9883d79e8407150e7c2a1c8680bee496c62fabe4619a72b3cabe90f",
    ),
    (
        "001e92a544463bda9bd04ddbe3d6eed248f82de32f522669efc5ddce95f46f5b",
        "227e0bb89de700385d19ec40e857db6e6a3e634b1c32962f370d26f84ff19683",
    ),
    (
        "1a68a1af9f663592291af987203393f707305c7bac9c8d63d6a729bdc553dc19",
        "3bcd651ee54d5f7b6013898aab251ee8ecc0688166fce6e9548d38472f6bd196",
    ),
]

# RFC 7748 section 5.2: scalar, u-coordinate, product.
RFC7748 = [
    (
        "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
        "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
    ),
    (
        "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
        "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
        "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
    ),
]


@pytest.mark.parametrize(("u", "image"), RFC9380)
def test_map_gives_the_published_images(u: str, image: str) -> None:
    assert curve.map_to_curve(int(u, 16)) == int(image, 16)


@pytest.mark.parametrize(("scalar", "u", "product"), RFC7748)
def test_multiply_gives_the_published_products(scalar: str, u: str, product: str) -> None:
    assert curve.multiply(bytes.fromhex(scalar), points(u)).tobytes().hex() == product


def test_multiply_iterated_a_thousand_times() -> None:
    k = u = (9).to_bytes(32, "little")
    for _ in range(1000):
        k, u = curve.multiply(k, np.frombuffer(u, np.uint8).reshape(1, 32)).tobytes(), k
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_diffie_hellman_of_rfc_7748() -> None:
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    base = points(9)
    assert curve.multiply(alice, curve.multiply(bob, base)).tobytes().hex() == shared
    assert curve.multiply(bob, curve.multiply(alice, base)).tobytes().hex() == shared


@given(elements)
def test_map_is_the_rfcs_and_stays_on_the_curve(r: int) -> None:
    u = curve.map_to_curve(r)
    assert u == rfc9380_map(r) == curve.map_to_curve(-r % P)
    assert 0 <= u < P and on_curve(u)


@pytest.mark.parametrize("r", [0, 1, 2, P - 1, P - 2, (P - 1) // 2, pow(2, (P - 1) // 4, P)])
def test_map_at_its_edges(r: int) -> None:
    assert curve.map_to_curve(r) == rfc9380_map(r)


def test_the_maps_denominator_is_never_zero() -> None:
    assert not is_square(-pow(2, -1, P))  # 1 + 2 r^2 = 0 would need r^2 = -1/2


@pytest.fixture(scope="module")
def without_gmpy2() -> ModuleType:
    """The module as it loads where gmpy2 is not installed."""
    assert curve.__file__ is not None
    spec = importlib.util.spec_from_file_location("curve_without_gmpy2", curve.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "gmpy2", None)
        spec.loader.exec_module(module)
    return module


def test_python_integers_give_the_same_points(without_gmpy2: ModuleType) -> None:
    assert type(without_gmpy2.P) is int
    values = [secrets.token_bytes(i) for i in range(50)]
    coded = curve.encode_points(KEY, values)
    np.testing.assert_array_equal(without_gmpy2.encode_points(KEY, values), coded)
    without_gmpy2.check_points(coded)
    with pytest.raises(ValueError, match="1 are not below .* 1 lie on the twist .* 1 are of small order"):
        without_gmpy2.check_points(points(P, 2, 1, 9))


@given(st.lists(st.binary(max_size=40), unique=True, max_size=8))
def test_points_are_valid_distinct_and_in_order(values: list[bytes]) -> None:
    coded = curve.encode_points(KEY, values)
    assert coded.shape == (len(values), 32) and coded.dtype == np.uint8
    curve.check_points(coded)
    assert len(np.unique(coded, axis=0)) == len(values)
    for value, row in zip(values, coded, strict=True):
        assert curve.encode_points(KEY, [value]).tobytes() == row.tobytes()


def test_another_key_gives_other_points() -> None:
    values = [b"1", b"2", b"3"]
    here, there = curve.encode_points(KEY, values), curve.encode_points(KEY[::-1], values)
    assert not set(map(bytes, here)) & set(map(bytes, there))


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="16 to 64 bytes, got 0"):
        curve.encode_points(b"", [b"1"])


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.binary(max_size=20))
def test_blinding_commutes(a: bytes, b: bytes, value: bytes) -> None:
    point = curve.encode_points(KEY, [value])
    ab, ba = curve.multiply(a, curve.multiply(b, point)), curve.multiply(b, curve.multiply(a, point))
    np.testing.assert_array_equal(ab, ba)
    curve.check_points(ab)


scalars = st.binary(min_size=32, max_size=32)


@given(scalars, scalars, st.binary(max_size=8))
def test_a_blinding_is_undone_under_another_one(scalar: bytes, other: bytes, value: bytes) -> None:
    image = curve.encode_points(KEY, [value])  # in seven cases of eight outside the subgroup
    back = curve.undoing(scalar)
    assert back is not None
    blinded = curve.multiply(other, curve.multiply(scalar, image))
    np.testing.assert_array_equal(curve.multiply(back, blinded), curve.multiply(other, image))


def test_a_scalar_that_none_undoes_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its inverse is 2^255 modulo ORDER, one multiple of 8 beyond what X25519 takes; so is the negative.
    found = [
        j
        for sign in (1, -1)
        if (j := (sign * pow(2**255, -1, curve.ORDER) - 2**254) * pow(8, -1, curve.ORDER) % curve.ORDER)
        < 2**251
    ]
    bad = (2**254 + 8 * found[0]).to_bytes(32, "little")
    assert curve.undoing(bad) is None
    drawn = iter([bad, KEY])
    monkeypatch.setattr(curve, "new_scalar", lambda: next(drawn))
    scalar, back = curve.new_blinding()
    assert scalar == KEY and back == curve.undoing(KEY)


def test_the_order_of_the_subgroup() -> None:
    assert pow(2, curve.ORDER - 1, curve.ORDER) == 1 and curve.ORDER.bit_length() == 253


def test_multiply_is_the_librarys_x25519() -> None:
    scalar, coded = curve.new_scalar(), curve.encode_points(KEY, [bytes([i]) for i in range(20)])
    key = X25519PrivateKey.from_private_bytes(scalar)
    expected = [key.exchange(X25519PublicKey.from_public_bytes(row.tobytes())) for row in coded]
    assert list(map(bytes, curve.multiply(scalar, coded))) == expected


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values, scalar = [bytes([i]) for i in range(10)], curve.new_scalar()
    coded = curve.encode_points(KEY, values)
    blinded = curve.multiply(scalar, coded)
    monkeypatch.setattr(curve, "_BATCH", 3)
    monkeypatch.setenv("VFL_THREADS", "2")
    with parallel_config(backend="threading", n_jobs=2):
        np.testing.assert_array_equal(curve.encode_points(KEY, values), coded)
        np.testing.assert_array_equal(curve.multiply(scalar, coded), blinded)


def test_nothing_gives_nothing() -> None:
    empty = curve.encode_points(KEY, [])
    curve.check_points(empty)
    assert empty.shape == curve.multiply(curve.new_scalar(), empty).shape == (0, 32)


def test_points_of_small_order_are_refused() -> None:
    assert {0, 1} < curve.SMALL_ORDER and len(curve.SMALL_ORDER) == 4
    for u in curve.SMALL_ORDER:
        assert on_curve(u)
        with pytest.raises(ValueError, match="a point among 2 is of small order"):
            curve.multiply(curve.new_scalar(), points(9, u))
        with pytest.raises(ValueError, match=r"of 2 points .* and 1 are of small order") as refused:
            curve.check_points(points(9, u))
        assert str(u) not in str(refused.value) or u < 2


def test_twisted_and_second_names_of_points_are_refused() -> None:
    twisted = next(u for u in range(2, 100) if not on_curve(u))
    with pytest.raises(ValueError, match="of 2 points 0 .* 1 lie on the twist of curve25519 and 0 "):
        curve.check_points(points(9, twisted))
    with pytest.raises(ValueError, match="of 3 points 2 are not below the field's prime, 0 "):
        curve.check_points(points(9, P + 9, 2**255 + 9))


def test_points_of_another_shape_are_refused() -> None:
    wrongs: list[Any] = [np.zeros((2, 31), np.uint8), np.zeros(32, np.uint8), np.zeros((2, 32), np.int8)]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"should be uint8 \(n, 32\), got"):
            curve.multiply(curve.new_scalar(), wrong)


def test_scalars_are_fresh() -> None:
    assert len({curve.new_scalar() for _ in range(100)}) == 100 and len(curve.new_scalar()) == 32
