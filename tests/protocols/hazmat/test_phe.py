"""phe reads what we write and we read what phe writes, to the last bit."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gmpy2 import mpz, powmod
from hypothesis import given, settings
from hypothesis import strategies as st
from phe import EncodedNumber, EncryptedNumber

from protocols.errors import ConfigError, ProtocolError
from protocols.hazmat.paillier import Fixed, PaillierKey, Plain, from_phe, to_phe
from protocols.hazmat.paillier.words import to_ints
from tests.protocols.hazmat.keys import BACKENDS, other, phe_pair, small, usual

KNOWN = json.loads((Path(__file__).parent / "phe_known.json").read_text())
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def known_key(backend: Any) -> PaillierKey:
    return PaillierKey(*phe_pair(int(KNOWN["p"], 16), int(KNOWN["q"], 16)), backend=backend)


@each_backend
def test_a_file_that_phe_wrote_decrypts_to_what_went_in(backend: Any) -> None:
    key = known_key(backend)
    for known in KNOWN["numbers"]:
        number = EncryptedNumber(key.phe, int(known["ciphertext"], 16), known["exponent"])
        array = from_phe([number], key, limit=abs(known["value"]) or 1)
        assert key.decrypt(array).tolist() == [known["value"]]


@each_backend
def test_the_same_plaintext_and_randomness_give_phe_s_own_ciphertext(backend: Any) -> None:
    key = known_key(backend)
    n = mpz(key.phe.n)
    for known in KNOWN["numbers"]:
        integer = EncodedNumber.encode(key.phe, known["value"]).encoding
        cells = key.engine.wrap([integer if integer <= key.phe.max_int else integer - key.phe.n])
        (nude,) = to_ints(key.engine.dump(cells))
        assert nude * powmod(int(known["r"], 16), n, n * n) % (n * n) == int(known["ciphertext"], 16)


@each_backend
def test_numbers_of_all_exponents_become_one_array(backend: Any) -> None:
    key = known_key(backend)
    values = [known["value"] for known in KNOWN["numbers"]]
    numbers = [EncryptedNumber(key.phe, int(k["ciphertext"], 16), k["exponent"]) for k in KNOWN["numbers"]]
    array = from_phe(numbers, key, limit=2.0**100)
    assert array.layout.bits == -4 * min(number.exponent for number in numbers)
    assert key.decrypt(array).tolist() == [float(value) for value in values]
    assert key.decrypt(array.sum(0)).item() == float(sum(Fraction(value) for value in values))


@given(
    x=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4),
    bits=st.integers(0, 60),
    exponent=st.integers(-20, 0),
)
@settings(max_examples=30)
def test_there_and_back_again(x: list[float], bits: int, exponent: int) -> None:
    key = small()
    a = key.encrypt(x, Fixed(1e3, bits))
    numbers = to_phe(a)
    assert [key.phe_private.decrypt(number) for number in numbers] == key.decrypt(a).tolist()
    back = from_phe(numbers, key, limit=1e3)
    assert key.decrypt(back).tolist() == key.decrypt(a).tolist()
    phes = [key.phe.encrypt(value, precision=16.0**exponent) for value in x]
    found = key.decrypt(from_phe(phes, key, limit=1e3 + 1))
    assert found.tolist() == [float(key.phe_private.decrypt(number)) for number in phes]


def test_shapes_and_whole_numbers_survive() -> None:
    key, x = small(), np.arange(-3, 3).reshape(2, 3)
    numbers = to_phe(key.encrypt(x, Fixed(3)))
    assert numbers.shape == (2, 3)
    assert [[key.phe_private.decrypt(number) for number in row] for row in numbers] == x.tolist()
    back = key.decrypt(from_phe(numbers, key, limit=3))
    assert back.dtype == np.int64 and back.tolist() == x.tolist()
    assert key.decrypt(from_phe([], key, limit=1)).tolist() == []


def test_a_positive_exponent_is_a_coarser_scale() -> None:
    key = small()
    number = key.phe.encrypt(EncodedNumber(key.phe, 5, 3))
    assert key.decrypt(from_phe(number, key, limit=5 * 16**3)).item() == 5 * 16**3


def test_what_phe_gets_it_sends_re_randomised() -> None:
    key = small()
    a = key.encrypt([1.0], Fixed(1, 4))
    (number,) = to_phe(a)
    assert number.ciphertext() != to_ints(a.rows)[0]


def test_what_does_not_go_together_is_refused() -> None:
    key = small()
    with pytest.raises(ConfigError, match="without terms="):
        to_phe(key.encrypt([1.0, 2.0], Fixed(2, 4), terms=3))
    with pytest.raises(ConfigError, match="Paillier"):
        to_phe(Plain().new_key().encrypt([1.0], Fixed(1, 4)))
    with pytest.raises(ConfigError, match="another key"):
        from_phe([other().phe.encrypt(1.0)], key, limit=1)
    with pytest.raises(ConfigError, match=r"phe\.EncryptedNumber"):
        from_phe([1.0], key, limit=1)
    with pytest.raises(ConfigError, match="limit"):
        from_phe([key.phe.encrypt(1.0)], key, limit=0)
    with pytest.raises(ConfigError, match="coarser precision"):
        from_phe([key.phe.encrypt(1.0), key.phe.encrypt(2.0**-1000)], key, limit=1)
    with pytest.raises(ProtocolError, match="ciphertexts"):
        from_phe([EncryptedNumber(key.phe, key.phe.n, 0)], key, limit=1)


def test_the_usual_key_is_phe_s() -> None:
    key = usual()
    assert key.phe_private.decrypt(to_phe(key.encrypt(0.5, Fixed(1, 1))).item()) == 0.5
