"""Laws of encrypted arrays: what numpy gives on the integers, or a refusal; never another number."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import parallel_config

from protocols.errors import ConfigError
from protocols.hazmat.paillier import EncryptedArray, Fixed, Plain, concatenated
from protocols.hazmat.paillier.array import Key
from tests.protocols.hazmat.keys import BACKENDS, small

KEYS: list[Key] = [*(small(backend) for backend in BACKENDS), Plain(bits=1024).new_key()]
WHOLE = Fixed(limit=2**40)
each_key = pytest.mark.parametrize("key", KEYS, ids=[*BACKENDS, "plain"])
few = settings(max_examples=12)
rng = np.random.default_rng(4)


def whole(*shape: int, most: int = 2**40) -> np.ndarray[Any, Any]:
    return rng.integers(-most, most, shape, endpoint=True)


def sent(array: EncryptedArray, to: Key) -> EncryptedArray:
    words, header = array.dump()
    return to.load(words, json.loads(json.dumps(header)))


def equal(a: object, b: object) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


@each_key
@given(bits=st.integers(0, 300), limit=st.integers(1, 2**52), data=st.data())
@few
def test_every_multiple_of_the_step_up_to_the_limit_comes_back_equal(
    key: Key, bits: int, limit: int, data: st.DataObject
) -> None:
    steps = [limit, -limit, 0, *data.draw(st.lists(st.integers(-limit, limit), max_size=4))]
    x = np.array(steps, dtype=np.float64) * 2.0**-bits
    fixed = Fixed(limit * 2.0**-bits, bits)
    assert fixed.bound == limit
    assert equal(key.decrypt(key.encrypt(x, fixed)), x)
    assert equal(key.decrypt(key.encrypt(x, fixed, terms=3)), x)


@each_key
@given(x=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), bits=st.integers(0, 30))
@few
def test_any_other_number_comes_back_as_the_nearest_step(key: Key, x: list[float], bits: int) -> None:
    back = key.decrypt(key.encrypt(x, Fixed(1e6, bits)))
    assert equal(back, np.rint(np.array(x) * 2.0**bits) / 2.0**bits)


@each_key
@pytest.mark.parametrize("bits", [63, 64, 200])
def test_whole_numbers_beyond_64_bits_are_exact(key: Key, bits: int) -> None:
    x = np.array([2**bits, -(2**bits), 2**bits - 1, 1, 0], dtype=object)
    assert key.decrypt(key.encrypt(x, Fixed(limit=2**bits))).tolist() == x.tolist()
    assert key.decrypt(key.encrypt(x, Fixed(2**bits), terms=2)).tolist() == x.tolist()


@each_key
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "uint64", "float16", "float32", ">f8"])
def test_every_type_of_number_is_encoded_by_its_value(key: Key, dtype: str) -> None:
    x = np.array([0, 1, 1, 0], dtype=dtype)
    assert equal(key.decrypt(key.encrypt(x, Fixed(1.0, 3))), [0.0, 1.0, 1.0, 0.0])


@each_key
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (0, 2), (2, 3, 2)])
def test_any_shape_survives_the_wire(key: Key, shape: tuple[int, ...]) -> None:
    x = whole(*shape)
    a = sent(key.encrypt(x, WHOLE), key.public())
    assert equal(key.decrypt(a), x)
    assert equal(key.decrypt((a + a) * 3 - a), 5 * x)
    if shape:
        assert equal(key.decrypt(sent(key.encrypt(x, WHOLE, terms=5), key)), x)


@each_key
@given(seed=st.integers(0, 2**32))
@few
def test_arithmetic_is_that_of_whole_numbers(key: Key, seed: int) -> None:
    draw = np.random.default_rng(seed)
    x, y, z = (draw.integers(-(2**40), 2**40, (3, 2)) for _ in range(3))
    factor, factors = int(draw.integers(-50, 50)), draw.integers(-128, 128, (3, 1)).astype(np.int8)
    a, b = sent(key.encrypt(x, WHOLE), key.public()), key.encrypt(y, WHOLE)
    found = 3 - (a + b - WHOLE.encode(z)) * factor + (-a) * factors - b * WHOLE.encode(z[:, :1])
    expected = 3 - (x + y - z) * factor + (-x) * factors - y.astype(object) * z[:, :1]
    assert equal(key.decrypt(found), expected)


@each_key
def test_what_is_known_to_be_zero_goes_on_as_any_other_array(key: Key) -> None:
    a = key.encrypt([5, -5], WHOLE)
    nothing = key.encrypt(np.zeros((0, 2)), WHOLE)
    assert equal(key.decrypt(a * 0 + 3), [3, 3])
    assert equal(key.decrypt(nothing.sum(0) + 3), [3, 3])
    assert equal(key.decrypt(nothing.bucket_sum(np.zeros(0, np.int64), 2) + 3), [[3, 3]] * 2)


@each_key
def test_products_of_fixed_point_numbers_keep_all_their_bits(key: Key) -> None:
    x, w = rng.normal(size=20), rng.normal(size=20)
    found = key.decrypt(key.encrypt(x, Fixed(10, 30)) * Fixed(10, 20).encode(w))
    assert equal(found, np.rint(x * 2.0**30) * np.rint(w * 2.0**20) / 2.0**50)


@each_key
@pytest.mark.parametrize("terms", [None, 40])
def test_slices_masks_and_indices_pick_what_numpy_picks(key: Key, terms: int | None) -> None:
    x = whole(5, 4, 3)
    a = key.encrypt(x, WHOLE, terms=terms)
    for index in (
        2,
        -1,
        slice(1, 4),
        (slice(None), 1),
        np.array([3, 0, 3]),
        x[:, 0, 0] > 0,
        (1, slice(0, 0)),
    ):
        assert equal(key.decrypt(a[index]), x[index])


@each_key
@pytest.mark.parametrize("terms", [None, 40])
def test_sums_are_numpy_s(key: Key, terms: int | None) -> None:
    x = whole(4, 3, 2)
    a = key.encrypt(x, WHOLE, terms=terms)
    assert equal(key.decrypt(a.sum(0)), x.sum(0)) and equal(key.decrypt(a.sum(1)), x.sum(1))
    if terms is None:
        assert equal(key.decrypt(a.sum()), x.sum()) and equal(key.decrypt(a.sum(-1)), x.sum(-1))


@each_key
@pytest.mark.parametrize(("rows", "features", "n"), [(0, 2, 3), (1, 1, 1), (60, 5, 3), (60, 2, 70)])
@pytest.mark.parametrize("terms", [None, 60])
def test_histograms_are_numpy_s(key: Key, rows: int, features: int, n: int, terms: int | None) -> None:
    x, index = whole(rows, 2), rng.integers(0, n, (rows, features))
    a = key.encrypt(x, WHOLE, terms=terms)
    expected = np.zeros((features, n, 2), np.int64)
    for feature in range(features):
        np.add.at(expected[feature], index[:, feature], x)
    assert equal(key.decrypt(a.bucket_sum(index, n)), expected)
    assert equal(key.decrypt(a.bucket_sum(index[:, 0], n)), expected[0])


@each_key
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 12), bits=st.integers(1, 40))
@few
def test_matmul_is_that_of_whole_numbers(key: Key, seed: int, rows: int, bits: int) -> None:
    draw = np.random.default_rng(seed)
    X, g = draw.integers(-(2**bits), 2**bits, (rows, 3)), draw.integers(-(2**40), 2**40, (rows, 2))
    X[draw.random(X.shape) < 0.3] = 0
    plain = Fixed(2**bits).encode(X)
    for terms in (None, rows):
        a = key.encrypt(g, WHOLE, terms=terms, times=plain.fixed if terms else None)
        expected = X.T.astype(object) @ g
        assert equal(key.decrypt(a.matmul(plain)), expected)
        assert equal(key.decrypt(plain.T @ a), expected)


@each_key
def test_matmul_of_many_rows_and_of_nothing_but_zeros(key: Key) -> None:
    g, X = whole(700), rng.integers(-128, 128, (700, 2)).astype(np.int8)
    a = key.encrypt(g, WHOLE)
    assert equal(key.decrypt(X.T @ a), X.T.astype(object) @ g)
    assert equal(key.decrypt(a.matmul(np.zeros((700, 2), np.int8))), [0, 0])


@each_key
def test_packed_sums_are_exact_at_the_edge_of_their_room_and_refused_beyond_it(key: Key) -> None:
    terms = 7  # not a power of two: the slot is not an inch wider than it has to be
    x = np.tile([2**40, -(2**40), 2**40, -(2**40)], (terms, 3))
    a = key.encrypt(x, WHOLE, terms=terms)
    assert a.layout.slots > 1
    full = a.sum(0)
    assert equal(key.decrypt(full), x.sum(0))
    with pytest.raises(ConfigError, match=r"\+ could overflow: .* 1 bits more .* terms="):
        _ = full + a[0] + a[1]
    with pytest.raises(ConfigError, match="bucket_sum could overflow"):
        key.encrypt(x, WHOLE, terms=3).bucket_sum(np.zeros(terms, np.int64), 1)
    with pytest.raises(ConfigError, match="matmul could overflow"):
        a.matmul(np.full((terms, 1), 2, np.int8))


@each_key
def test_a_packed_array_uses_the_room_that_it_has(key: Key) -> None:
    x = whole(2, 100, most=2**20)
    packed = key.encrypt(x, Fixed(2**20), terms=1000)
    assert packed.layout.width == 31 and packed.layout.slots == 1022 // 31 and len(packed.rows) == 2 * 4
    assert equal(key.decrypt(packed), x)


@each_key
@given(seed=st.integers(0, 2**32), shape=st.tuples(st.integers(0, 9), st.integers(0, 9)), s=st.integers(1, 3))
@few
def test_packing_joins_what_was_computed_apart(key: Key, seed: int, shape: tuple[int, int], s: int) -> None:
    x = np.random.default_rng(seed).integers(-9, 9, (*shape, s), endpoint=True)
    a = sent(key.encrypt(x, Fixed(limit=9), terms=7), key.public())
    packed = (a * 3 - a).packed()
    assert packed.shape == (x.size,) and not packed.fresh
    assert equal(key.decrypt(sent(packed, key)), 2 * x.ravel())
    # As if it had been encrypted in this shape.
    assert packed.layout.grid == key.encrypt(x.reshape(-1), Fixed(limit=9), terms=7).layout.grid


@each_key
def test_packed_plaintexts_are_full_and_exact_at_the_edge_of_their_room(key: Key) -> None:
    edge = Fixed(limit=2**20)
    signs = np.where(rng.random((40, 2)) < 0.5, -1, 1)
    a = key.encrypt(np.repeat(signs * 2**20, 50, axis=0), edge, terms=50)
    sums = a[np.arange(40) * 50] * 50
    packed = sums.packed()
    width = (50 * 2**20).bit_length() + 1
    assert packed.layout.width == width and packed.layout.slots == 1022 // width // 2 * 2
    assert packed.layout.count == -(-80 // packed.layout.slots)
    assert equal(key.decrypt(sent(packed, key)), 50 * 2**20 * signs.ravel())
    with pytest.raises(ConfigError, match="overflow"):
        packed * 2


@each_key
def test_what_has_no_room_is_packed_as_it_is(key: Key) -> None:
    x = whole(3, 2)
    for terms, columns in ((None, 2), (2**500, 1)):
        a = key.encrypt(x[:, :columns], WHOLE, terms=terms)
        assert a.packed().layout.count == a.layout.count
        assert equal(key.decrypt(a.packed()), x[:, :columns].ravel())
    blank = key.encrypt(np.ones((2, 100), np.int64), Fixed(2**20), terms=1000)
    assert blank.layout.grid == (2, 4)
    with pytest.raises(ConfigError, match="blank slots"):
        blank.packed()


@each_key
@pytest.mark.parametrize("terms", [None, 40])
def test_arrays_one_after_another(key: Key, terms: int | None) -> None:
    x = whole(5, 2)
    a, b = key.encrypt(x[:3], WHOLE, terms=terms), key.encrypt(x[3:], WHOLE, terms=terms)
    both = concatenated([a, b + b])
    assert equal(key.decrypt(both), np.concatenate([x[:3], 2 * x[3:]]))
    assert both.layout.bound == (b + b).layout.bound
    for other in (key.encrypt(x[:3], WHOLE, terms=7), key.encrypt(x[:, :1], WHOLE, terms=terms)):
        with pytest.raises(ConfigError, match="encrypt them alike"):
            concatenated([a, other])


@each_key
def test_an_unpacked_value_has_all_of_the_plaintext_s_room(key: Key) -> None:
    a = key.encrypt([1, -1], Fixed(1))
    most = a.layout.capacity
    assert key.decrypt(a * most).tolist() == [most, -most]
    with pytest.raises(ConfigError, match="could overflow"):
        _ = a * (most + 1)


@each_key
def test_scales_are_brought_together_exactly(key: Key) -> None:
    a, b = key.encrypt([1.5], Fixed(2, 1)), key.encrypt([0.125], Fixed(2, 3))
    assert equal(key.decrypt(a + b), [1.625]) and equal(key.decrypt(b - a), [-1.375])
    with pytest.raises(ConfigError, match="without decrypting"):
        b.rescaled(1)


@each_key
def test_what_an_array_declares_does_not_depend_on_its_numbers(key: Key) -> None:
    """Bound, scale and size tell how many rows there are and what was declared, and nothing else."""

    def declared(X: np.ndarray[Any, Any], g: np.ndarray[Any, Any], index: np.ndarray[Any, Any]) -> object:
        a = key.encrypt(g, Fixed(8, 20))
        results = [a, a.matmul(Fixed(8, 10).encode(X)), a.bucket_sum(index, 3), a + 1.0, a.sum()]
        return [(array.dump()[1], array.dump()[0].shape) for array in results]

    zeros = declared(np.zeros((6, 2)), np.zeros(6), np.zeros(6, np.int64))
    assert zeros == declared(rng.uniform(-8, 8, (6, 2)), rng.uniform(-8, 8, 6), rng.integers(0, 3, 6))


@each_key
def test_results_do_not_depend_on_the_number_of_workers(key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    x, index = whole(300), rng.integers(0, 4, (300, 5))
    monkeypatch.setenv("VFL_THREADS", "3")
    with parallel_config("threading", n_jobs=3):
        a = key.encrypt(x, WHOLE)
        sums = key.decrypt(a.bucket_sum(index, 4))
        assert equal(key.decrypt(a * np.full(300, -3, np.int8)), -3 * x)
    monkeypatch.setenv("VFL_THREADS", "1")
    assert equal(sums, key.decrypt(key.encrypt(x, WHOLE).bucket_sum(index, 4)))
