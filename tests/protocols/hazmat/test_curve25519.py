"""The batch kernels give, to the bit, what the libraries give for one point; both arithmetics, on any CPU."""

from __future__ import annotations

import secrets
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.hazmat import blake2b, curve25519, curve_kernels
from protocols.hazmat.curve25519 import EDGES, ORDER_8, Field, Rows
from protocols.psi import curve
from tests.protocols.psi.test_curve import RFC7748, RFC9380

P = 2**255 - 19
FIELDS: list[Field] = ["fma", "ifma"]
both = pytest.mark.parametrize("field", FIELDS)

# Numbers at the ends of the range, with few bits set or few clear, and any others.
sparse = st.builds(lambda a, b, c: (2**a + 2**b - 2**c) % 2**256, *[st.integers(0, 256)] * 3)
numbers = st.one_of(st.sampled_from(EDGES), sparse, st.integers(0, 2**256 - 1))
batches = st.lists(numbers, min_size=1, max_size=64)
scalars = st.one_of(st.sampled_from([bytes(32), b"\xff" * 32]), st.binary(min_size=32, max_size=32))


def rows(*values: int | str) -> Rows:
    raw = [bytes.fromhex(v) if isinstance(v, str) else v.to_bytes(32, "little") for v in values]
    return np.frombuffer(b"".join(raw), np.uint8).reshape(-1, 32)


def integers(table: Rows) -> list[int]:
    return [int.from_bytes(row.tobytes(), "little") for row in table]


def library_product(scalar: bytes, point: int) -> bytes:
    try:
        return curve._multiply(scalar, [point.to_bytes(32, "little")])
    except ValueError:
        return bytes(32)


def square_or_zero(u: int) -> bool:
    return pow(u * (u * u + 486662 * u + 1), (P - 1) // 2, P) in (0, 1)


@both
@given(scalars, batches)
def test_x25519_is_the_librarys(field: Field, scalar: bytes, points: list[int]) -> None:
    products = curve25519.multiply(scalar, rows(*points), field)
    assert [row.tobytes() for row in products] == [library_product(scalar, point) for point in points]


@both
def test_x25519_of_many_random_points(field: Field) -> None:
    scalar, raw = secrets.token_bytes(32), np.frombuffer(secrets.token_bytes(32 * 3001), np.uint8)
    points = raw.reshape(-1, 32)
    expected = [library_product(scalar, point) for point in integers(points)]
    assert [row.tobytes() for row in curve25519.multiply(scalar, points, field)] == expected


@both
@given(batches)
def test_elligator_is_that_of_python_integers(field: Field, elements: list[int]) -> None:
    images = integers(curve25519.map_to_curve(rows(*elements), field))
    assert images == [curve.map_to_curve(r % 2**255) for r in elements]


@both
@given(batches)
def test_the_twist_is_found(field: Field, points: list[int]) -> None:
    twisted = curve25519.on_twist(rows(*points), field)
    assert twisted.tolist() == [not square_or_zero(u % 2**255) for u in points]


@both
def test_edges(field: Field) -> None:
    assert {0, 1, P - 1, P, P + 1, 2**255 - 1, *ORDER_8} < set(EDGES)
    for scalar in (bytes(32), b"\xff" * 32, bytes(range(32))):
        expected = [library_product(scalar, point) for point in EDGES]
        assert [row.tobytes() for row in curve25519.multiply(scalar, rows(*EDGES), field)] == expected
    expected_images = [curve.map_to_curve(r % 2**255) for r in EDGES]
    assert integers(curve25519.map_to_curve(rows(*EDGES), field)) == expected_images


@both
def test_points_of_small_order_give_zero(field: Field) -> None:
    names = [u + k * P for u in curve.SMALL_ORDER for k in (0, 1) if u + k * P < 2**255]
    assert not curve25519.multiply(secrets.token_bytes(32), rows(P - 1, *names, 2**255), field).any()


@both
@pytest.mark.parametrize(("scalar", "u", "product"), RFC7748)
def test_rfc_7748(field: Field, scalar: str, u: str, product: str) -> None:
    assert curve25519.multiply(bytes.fromhex(scalar), rows(u), field).tobytes().hex() == product


@both
def test_rfc_7748_iterated_a_thousand_times(field: Field) -> None:
    k = u = (9).to_bytes(32, "little")
    for _ in range(1000):
        k, u = curve25519.multiply(k, rows(u.hex()), field).tobytes(), k
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


@both
def test_rfc_9380(field: Field) -> None:
    elements, images = zip(*((int(u, 16), int(image, 16)) for u, image in RFC9380), strict=True)
    assert integers(curve25519.map_to_curve(rows(*elements), field)) == list(images)


@both
def test_a_point_does_not_depend_on_its_neighbours(field: Field) -> None:
    scalar, points = secrets.token_bytes(32), rows(*range(2, 30))
    together = curve25519.multiply(scalar, points, field)
    for size in range(20):
        part = points[5 : 5 + size]
        np.testing.assert_array_equal(curve25519.multiply(scalar, part, field), together[5 : 5 + size])
        assert curve25519.map_to_curve(part, field).shape == (size, 32)
        assert curve25519.on_twist(part, field).shape == (size,)
    strided = points[::-2]
    np.testing.assert_array_equal(curve25519.multiply(scalar, strided, field), together[::-2])


@pytest.fixture
def unprepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFL_KERNELS", "on")
    monkeypatch.setattr(curve25519, "_state", curve25519._State())


def test_kernels_that_pass_their_test_serve(unprepared: None) -> None:
    first, second = curve.prepare(10), curve.prepare(10)
    assert first.by == second.by == (curve25519.field_of_this_cpu() or "fma")
    assert second.how == "there already" and 0 <= second.seconds < first.seconds
    assert curve25519.prepared_before()


BROKEN = [
    (curve_kernels, "multiply", "X25519"),
    (curve_kernels, "map_to_curve", "Elligator 2"),
    (curve_kernels, "squareness", "the curve's equation"),
    (blake2b, "hash_values", "BLAKE2b"),
]


@pytest.mark.parametrize(("module", "name", "said"), BROKEN)
def test_a_kernel_that_errs_is_dropped_for_good(
    module: Any, name: str, said: str, unprepared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(module, name)

    def off(*arguments: Any) -> None:
        right(*arguments)
        out = arguments[-2] if module is curve_kernels else arguments[-1]
        out[3, 3] ^= np.uint64(0x7F << 56)

    off.stats = right.stats  # type: ignore[attr-defined]
    monkeypatch.setattr(module, name, off)
    with pytest.warns(RuntimeWarning, match=f"failed their comparison .*: {said}; VFL_KERNELS=off"):
        assert curve.prepare(10).by == "library"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert curve.multiply(bytes(32), rows(9)).tobytes() == library_product(bytes(32), 9)
        assert curve.encode_points(bytes(32), [b"1"]).tobytes() == curve._encode(bytes(32), [b"1"])


def test_a_compiler_that_fails_costs_no_run(unprepared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise NotImplementedError("no such instruction")

    broken.stats = curve_kernels.multiply.stats  # type: ignore[attr-defined]
    monkeypatch.setattr(curve_kernels, "multiply", broken)
    with pytest.warns(RuntimeWarning, match="slower: NotImplementedError"):
        assert curve.multiply(bytes(32), rows(9)).tobytes() == library_product(bytes(32), 9)


def test_a_full_disk_costs_no_kernel(unprepared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = curve_kernels.multiply
    told: list[bool] = []

    def full(*arguments: Any) -> None:
        if not told:
            raise OSError(28, "No space left on device")
        right(*arguments)

    full.stats = right.stats  # type: ignore[attr-defined]
    monkeypatch.setattr(curve_kernels, "multiply", full)
    monkeypatch.setattr(curve25519, "keep_nothing", lambda: told.append(True))
    assert curve.prepare(10).by != "library" and told == [True]


for _test in (
    test_x25519_is_the_librarys,
    test_elligator_is_that_of_python_integers,
    test_the_twist_is_found,
):
    settings(max_examples=20)(_test)  # of up to 64 points each
