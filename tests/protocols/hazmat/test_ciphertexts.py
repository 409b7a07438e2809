"""Laws of the ciphertexts: fresh on leaving, never of a wrong key, and nothing foreign taken in unread."""

from __future__ import annotations

import os
import pickle
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gmpy2 import invert, legendre, mpz
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError, DataError, ProtocolError
from protocols.hazmat import lanes, montgomery
from protocols.hazmat.paillier import Fixed, Paillier, PaillierKey, Plain, gmp, keys, vector
from protocols.hazmat.paillier.array import EncryptedArray
from protocols.hazmat.paillier.gmp import Gmp
from protocols.hazmat.paillier.vector import Vector
from protocols.hazmat.paillier.words import to_ints, to_words, word_count
from tests.protocols.hazmat.keys import BACKENDS, P512, Q512, other, phe_pair, small, usual

N = P512 * Q512
FIXED = Fixed(100.0, 20)
each_backend = pytest.mark.parametrize("key", [small(backend) for backend in BACKENDS], ids=BACKENDS)


def words(*ciphertexts: int) -> Any:
    return to_words([mpz(c) for c in ciphertexts], word_count(2 * N.bit_length()))


def header(key: PaillierKey, count: int) -> dict[str, Any]:
    return key.encrypt(np.zeros(count), FIXED).dump()[1]


@each_backend
def test_sending_twice_gives_other_bytes_that_decrypt_the_same(key: PaillierKey) -> None:
    a = key.encrypt([1.5, -2.5, 0.0], FIXED)
    cells = key.engine.dump(a.rows)
    first, second = a.dump(), a.dump()
    assert np.array_equal(first[0], cells), "what is fresh leaves as it is"
    assert (first[0] != second[0]).any(axis=1).all() and first[1] == second[1]
    for sent in (first, second):
        assert key.decrypt(key.load(*sent)).tolist() == [1.5, -2.5, 0.0]


@each_backend
def test_what_arithmetic_made_leaves_under_new_ciphertexts(key: PaillierKey) -> None:
    a = key.public().load(*key.encrypt([1.0, 2.0], FIXED).dump())
    for made in (a, a + a, a * 3, -a, a[:1], a.sum(), a + 1.0):
        assert not made.fresh
        raw = key.engine.dump(made.rows)
        assert (made.dump()[0] != raw).any(axis=1).all()


def test_the_wrong_key_is_an_error_and_not_a_number() -> None:
    mine, theirs = small(), other()
    a, b = mine.encrypt([1.0], FIXED), theirs.encrypt([1.0], FIXED)
    acts: tuple[Callable[[], object], ...] = (
        lambda: a + b,
        lambda: a - b,
        lambda: theirs.decrypt(a),
        lambda: mine.decrypt(b),
    )
    for act in acts:
        with pytest.raises(ConfigError, match="key"):
            act()
    with pytest.raises(ProtocolError, match="another key"):
        theirs.load(*a.dump())
    with pytest.raises(ConfigError, match="cannot decrypt"):
        mine.public().decrypt(a)


def test_ciphertexts_of_another_key_under_a_false_name_are_an_error() -> None:
    """The bound tells: a random plaintext lies within it with probability bound / n."""
    raw, _ = other().encrypt([1.0, 2.0], FIXED).dump()
    foreign = to_words([c % N**2 for c in to_ints(raw)], raw.shape[1])
    with pytest.raises(DataError, match="not what its header declares"):
        small().decrypt(small().load(foreign, header(small(), 2)))


@pytest.mark.parametrize("terms", [None, 10])
def test_a_bound_that_is_not_kept_is_an_error(terms: int | None) -> None:
    key = small()
    raw, head = key.encrypt([99.0, 1.0], FIXED, terms=terms).dump()
    with pytest.raises(DataError, match="declares"):
        key.decrypt(key.load(raw, {**head, "bound": hex(98 << 20)}))


@each_backend
@pytest.mark.parametrize("bad", [0, N, P512, 3 * Q512, N**2, N**2 + 1, 2**2048 - 1])
def test_what_is_no_ciphertext_is_not_loaded(key: PaillierKey, bad: int) -> None:
    with pytest.raises(ProtocolError, match="of 3 ciphertexts"):
        key.load(words(1, bad, 1), header(key, 3))


@each_backend
def test_edge_ciphertexts_decrypt_to_what_they_are(key: PaillierKey) -> None:
    """1 and -1 = (-1)^n encrypt 0; (1 + n)^m encrypts m, unhidden."""
    edge = [1, N**2 - 1, 1 + N, N**2 + 1 - N, int(invert(1 + N, N**2))]
    a = key.load(words(*edge), {**header(key, 5), "bits": 0})
    assert key.decrypt(a).tolist() == [0, 0, 1, -1, -1]
    assert key.decrypt(a + a).tolist() == [0, 0, 2, -2, -2]
    assert key.decrypt(a * -7).tolist() == [0, 0, -7, 7, 7]
    assert key.decrypt(a.matmul(np.full((5, 1), 3, np.int8))).tolist() == [-3]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(field=st.sampled_from(["key", "shape", "bits", "bound", "width", "slots", None]), value=json_values)
def test_any_header_is_read_or_refused(field: str | None, value: Any) -> None:
    key = small()
    raw, head = words(1, 1), header(key, 2)
    said = value if field is None else {**head, field: value}
    try:
        array = key.load(raw, said)
    except ProtocolError:
        return
    assert array.layout.count == 2 and array.layout.bound <= array.layout.capacity


@pytest.mark.parametrize("bits", [-1, -1100, -8000, 1001, 8000])
def test_plain_numbers_are_added_at_no_scale_that_they_cannot_have(bits: int) -> None:
    a = small().load(words(1, 1), {**header(small(), 2), "bits": bits})
    with pytest.raises(
        ConfigError, match="plain numbers cannot be added|expected a whole number from 0 to 1000"
    ):
        _ = a + 1


@pytest.mark.parametrize("terms", [None, 1, 3])
def test_a_float_beyond_a_limit_that_no_float_equals_is_refused(terms: int | None) -> None:
    limit = 2**54 - 1  # as a float it would be 2**54
    key, most = small(), 2.0**54 - 2
    assert key.decrypt(key.encrypt([most, -most], Fixed(limit), terms=terms)).tolist() == [most, -most]
    with pytest.raises(DataError, match="1 of 2 values are beyond the limit"):
        key.encrypt([2.0**54, 0.0], Fixed(limit), terms=terms)


def test_an_empty_array_does_not_promise_a_huge_sum() -> None:
    with pytest.raises(ProtocolError, match="that no array has"):
        small().load(words(), {**header(small(), 0), "shape": [0, 2**39]})


@pytest.mark.parametrize(
    "wrong",
    [words(1), words(1, 1, 1), words(1, 1)[:, :-1], words(1, 1).astype(np.int64), words(1, 1).ravel()],
)
def test_words_of_another_size_or_type_are_refused(wrong: Any) -> None:
    with pytest.raises(ProtocolError, match=r"uint64 \[2, 32\]"):
        small().load(wrong, header(small(), 2))


def test_loaded_words_are_not_changed_from_outside() -> None:
    raw, head = small().encrypt([1.0], FIXED).dump()
    mine = raw.copy()
    a = small().load(mine, head)
    mine[:] = 0
    assert small().decrypt(a).tolist() == [1.0]


def test_small_keys_only_by_name() -> None:
    makes: tuple[Callable[[], object], ...] = (
        lambda: Paillier(bits=1024).new_key(),
        lambda: PaillierKey(*phe_pair(P512, Q512)),
        lambda: Paillier().key_from_bytes(small().to_bytes()),
    )
    for make in makes:
        with pytest.raises((ConfigError, ProtocolError), match="2048"):
            make()
    key = Paillier(bits=1024, small_key=True).key_from_bytes(small().to_bytes())
    assert key.fingerprint == small().fingerprint and not key.can_decrypt


def test_the_usual_key_is_new_and_of_2048_bits() -> None:
    key = Paillier().new_key()
    assert key.bits == 2048 and key.can_decrypt and key.phe.n != usual().phe.n
    assert key.decrypt(key.encrypt([0.5], FIXED)).tolist() == [0.5]


M2203 = (2**2203 - 1).to_bytes(276, "big")  # a prime


@pytest.mark.parametrize(
    "raw", [b"", bytes(2048), b"\xff" * 50_000, 8 * (2**2047 + 2).to_bytes(256, "big"), 8 * M2203]
)
def test_what_is_no_public_key_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError, match="product of two primes"):
        Paillier().key_from_bytes(raw)


def test_a_private_key_that_does_not_belong_is_refused() -> None:
    with pytest.raises(ConfigError, match="not that of the public key"):
        PaillierKey(small().phe, other().phe_private, small_key=True)
    # 3 divides both n and phi(n): decryption would not be unique.
    with pytest.raises(ConfigError, match="prime to"):
        PaillierKey(*phe_pair(3, 2**521 - 1), small_key=True)


def test_a_key_is_not_pickled_nor_shown() -> None:
    key = small()
    for value in (key, key.encrypt([1.0], FIXED)):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(value)
    assert not any(str(secret) in repr(key) + repr(vars(key.public())) for secret in (P512, Q512))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        ([1.0, np.nan], "1 of 2 values are NaN or infinite"),
        ([np.inf, -np.inf], "2 of 2 values are NaN or infinite"),
        ([100.5, 7.25], "1 of 2 values are beyond the limit of ±100"),
        ([-101], "1 of 1 values are beyond"),
        ([2**70], "beyond"),
        (["7.25"], "expected numbers"),
        ([1 + 7.25j], "expected numbers"),
        ([7.25, None], "expected numbers"),
    ],
)
def test_what_cannot_be_encoded_is_refused_without_showing_it(x: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        small().encrypt(x, FIXED)
    assert "7.25" not in str(caught.value)


def test_a_result_too_large_for_a_float_is_an_error() -> None:
    key = usual()
    a = key.encrypt([2.0**900], Fixed(2.0**900, 1)) * 2**200
    with pytest.raises(DataError, match="too large for a float"):
        key.decrypt(a)


@pytest.mark.parametrize(
    "act",
    [
        lambda a: a[..., 0],
        lambda a: a[0, 0],
        lambda a: a.sum(),
        lambda a: a.sum(1),
        lambda a: a * np.ones((2, 3), np.int8),
        lambda a: a * np.ones((2, 3)),
        lambda a: a.matmul(np.ones((3, 1), np.int8)),
        lambda a: a.bucket_sum(np.array([0, 5]), 5),
        lambda a: a.bucket_sum(np.array([0, -1]), 5),
        lambda a: a.bucket_sum(np.array([0.0, 1.0]), 5),
        lambda a: a.bucket_sum(np.array([0]), 5),
        lambda a: a + a[:1],
        lambda a: a + np.zeros((5, 5)),
        lambda a: a + small().encrypt(np.zeros((2, 3)), FIXED),
        lambda a: a + Fixed(1, 21).encode(np.zeros((2, 3))),
        lambda a: small().encrypt(1.0, FIXED, terms=1),
        lambda a: small().encrypt([1.0], FIXED, terms=0),
        lambda a: small().encrypt([1.0], FIXED, times=FIXED),
        lambda a: small().encrypt([1.0], Fixed(2.0**900, 20), terms=2**200),
        lambda a: Fixed(0.0),
        lambda a: Fixed(float("inf")),
        lambda a: Fixed(1.0, -1),
        lambda a: Fixed(1.0, 1001),
    ],
)
def test_what_cannot_be_meant_is_refused(act: Any) -> None:
    a = small().encrypt(np.zeros((2, 3)), FIXED, terms=10)
    with pytest.raises(ConfigError):
        act(a)


def test_other_types_are_left_to_python() -> None:
    a = small().encrypt([1.0], FIXED)
    acts: tuple[Callable[[], object], ...] = (
        lambda: a + "x",
        lambda: a * 1.5,
        lambda: a * a,
        lambda: "x" @ a,
        lambda: a - None,
    )
    for act in acts:
        with pytest.raises(TypeError):
            act()


def residues(backend: Any, count: int, p: int = 0, q: int = 0) -> list[Any]:
    engine = Gmp(N, p, q) if backend == "gmpy2" else Vector(backend, N, p, q)
    return to_ints(engine.dump(engine.obfuscators(count)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["owner", "few", "many"])
def test_obfuscators_are_residues_that_differ(
    kind: str, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (gmp, vector):
        monkeypatch.setattr(module, "FEW", 0 if kind == "many" else 100)
    made = residues(backend, 40, P512, Q512) if kind == "owner" else residues(backend, 40)
    assert len({*made}) == 40
    assert set(Gmp(N, P512, Q512).decrypt(to_words(made, 32))) == {0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_public_obfuscators_reach_every_coset_of_the_squares(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Powers of one base would miss half of the four, and the owner could tell which sums were whose."""
    for module in (gmp, vector):
        monkeypatch.setattr(module, "FEW", 0)
    made = residues(backend, 200)
    assert {(legendre(r, P512), legendre(r, Q512)) for r in made} == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_a_stock_is_bounded_and_gives_each_obfuscator_once() -> None:
    key = small().public()
    while len(key._stock) < 20:
        with key.filling(limit=20):
            pass
    with key.filling(limit=20):
        assert len(key._stock) == 20
    taken = np.concatenate([key.obfuscators(15), key.obfuscators(15)])
    assert len(key._stock) == 0 and len({row.tobytes() for row in taken}) == 30


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_uses_no_obfuscator_of_its_parent() -> None:
    key = small().public()
    while len(key._stock) < 20:
        with key.filling(limit=20):
            pass
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, key.obfuscators(20).tobytes())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        theirs = said.read()
    os.waitpid(child, 0)
    mine = key.obfuscators(20)
    width = len(theirs) // 20
    assert width == mine.itemsize * mine.shape[1]
    assert not {row.tobytes() for row in mine} & {
        theirs[at : at + width] for at in range(0, len(theirs), width)
    }


def test_plain_says_so_wherever_it_could_be_asked() -> None:
    plain, real = Plain().new_key(), small()
    assert Plain.is_plain and plain.is_plain and plain.encrypt([1.0], FIXED).is_plain
    assert not (Paillier.is_plain or real.is_plain or real.encrypt([1.0], FIXED).is_plain)
    assert "plain" in repr(plain.encrypt([1.0], FIXED))


def test_plain_refuses_what_paillier_refuses() -> None:
    mine, theirs = Plain().new_key(), Plain().new_key()
    a = mine.encrypt([1.0, 2.0], FIXED)
    acts: tuple[Callable[[], object], ...] = (
        lambda: a + theirs.encrypt([1.0, 2.0], FIXED),
        lambda: theirs.decrypt(a),
    )
    for act in acts:
        with pytest.raises(ConfigError, match="key"):
            act()
    raw, head = a.dump()
    loads: tuple[Callable[[], object], ...] = (
        lambda: theirs.load(raw, head),
        lambda: mine.load(raw[:1], head),
        lambda: small().load(raw, head),
    )
    for load in loads:
        with pytest.raises(ProtocolError):
            load()
    with pytest.raises(ProtocolError, match="16 bytes"):
        Plain().key_from_bytes(secrets.token_bytes(15))
    assert isinstance(Plain().key_from_bytes(mine.to_bytes()).load(raw, head), EncryptedArray)


def test_kernels_that_compute_wrong_numbers_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = montgomery.Modulus.power
    monkeypatch.setattr(montgomery.Modulus, "power", lambda m, cells, e: right(m, cells, [k ^ 1 for k in e]))
    monkeypatch.setattr(keys, "backends", lambda: ("ifma", "gmpy2"))
    vector.works.cache_clear()
    with pytest.warns(UserWarning, match="wrong numbers"):
        key = PaillierKey(*phe_pair(P512, Q512), small_key=True)
    assert key.engine.name == "gmpy2"
    with pytest.raises(ConfigError, match="cannot serve"):
        PaillierKey(*phe_pair(P512, Q512), backend="ifma", small_key=True)
    vector.works.cache_clear()


def test_kernels_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "has_ifma", lambda: True)
    monkeypatch.delenv("VFL_KERNELS", raising=False)
    assert keys.backends() == ("ifma", "gmpy2")
    monkeypatch.setenv("VFL_KERNELS", "off")
    assert keys.backends() == ("gmpy2",)
    monkeypatch.setattr(lanes, "has_ifma", lambda: False)
    for setting, wanted in (("auto", ("gmpy2",)), ("on", ("fma", "gmpy2"))):
        monkeypatch.setenv("VFL_KERNELS", setting)
        assert keys.backends() == wanted


def test_arrays_of_two_backends_go_together() -> None:
    a, b = (small(backend).encrypt([1.5, 2.0], FIXED) for backend in BACKENDS[:2])
    for key in (small(BACKENDS[0]), small(BACKENDS[1])):
        assert key.decrypt(a + b).tolist() == key.decrypt(b + a).tolist() == [3.0, 4.0]
    with pytest.raises(ConfigError, match="expected 'auto'"):
        PaillierKey(*phe_pair(P512, Q512), backend="gmp", small_key=True)  # type: ignore[arg-type]
