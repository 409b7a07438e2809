"""Keys: `phe`'s, with what it takes to encrypt, decrypt and load whole arrays."""

from __future__ import annotations

import hashlib
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from gmpy2 import gcd, is_prime, mpz
from phe import PaillierPrivateKey, PaillierPublicKey, generate_paillier_keypair

from protocols.errors import ConfigError, ProtocolError
from protocols.hazmat.paillier.array import EncryptedArray
from protocols.hazmat.paillier.engine import Cells, Engine
from protocols.hazmat.paillier.fixed import Array, Fixed
from protocols.hazmat.paillier.gmp import Gmp
from protocols.hazmat.paillier.layout import Header, Layout, plan, read_header
from protocols.hazmat.paillier.proof import ROOTS, holds, prove, size_of
from protocols.hazmat.paillier.stock import Stock
from protocols.hazmat.paillier.words import Words, to_ints, word_count
from protocols.hazmat.switch import chosen

Backend = Literal["auto", "gmpy2", "ifma", "fma"]
SAFE_BITS, MOST_BITS = 2048, 8192


@dataclass(frozen=True)
class Paillier:
    """Settings of Paillier encryption: `Paillier(bits=3072).new_key()`.

    bits: of the modulus; fewer than 2048 are refused unless `small_key=True`, which is for tests: such a key
    can be broken. backend: "ifma" (numba; for CPUs with AVX512-IFMA), "fma" (numba; for those with AVX2),
    "gmpy2" (any), or "auto": "ifma" where the CPU has it, unless `VFL_KERNELS=off` is set, else "gmpy2".
    """

    bits: int = SAFE_BITS
    backend: Backend = "auto"
    small_key: bool = False
    is_plain: ClassVar[bool] = False

    def new_key(self) -> PaillierKey:
        """A private key from the operating system's randomness."""
        _check_size(self.bits, self.small_key)
        public, private = generate_paillier_keypair(n_length=self.bits)
        return PaillierKey(public, private, backend=self.backend, small_key=self.small_key)

    def key_from_bytes(self, raw: bytes) -> PaillierKey:
        """A peer's public key, as its `to_bytes` gave it.

        ProtocolError if it is none of at least `bits`, or without a proof that nothing but plaintexts goes
        through it (`proof`). That takes some 20 ms at 2048 bits, once for a key.
        """
        size = len(raw) // (1 + ROOTS)
        n = int.from_bytes(raw[: min(size, MOST_BITS // 8 + 1)], "big")
        if not self.bits <= n.bit_length() <= MOST_BITS or n % 2 == 0 or is_prime(n):
            raise ProtocolError(
                f"a Paillier key should be a product of two primes of {self.bits} to {MOST_BITS} bits, got "
                f"{n.bit_length()} bits"
            )
        # Its length first: what `holds` is asked about, it remembers.
        if len(raw) != (1 + ROOTS) * size_of(n) or not holds(n, raw[size:]):
            raise ProtocolError(
                "a Paillier key came without a valid proof that n is prime to phi(n), which its owner's "
                "to_bytes() adds; without it a key could read what is multiplied into its ciphertexts"
            )
        public = PaillierPublicKey(n)
        return PaillierKey(public, backend=self.backend, small_key=self.small_key, proof=raw[size:])


class PaillierKey:
    """A phe key, public or private, for arrays. It is not pickled: a private part stays in its process."""

    is_plain = False

    def __init__(
        self,
        public: PaillierPublicKey,
        private: PaillierPrivateKey | None = None,
        *,
        backend: Backend = "auto",
        small_key: bool = False,
        proof: bytes = b"",
    ) -> None:
        _check_size(public.n.bit_length(), small_key)
        if private is not None:
            _check_private(public, private)
        self.phe: Any = public
        self.phe_private: Any = private
        self._backend, self._small, self._given = backend, small_key, proof
        primes = (private.p, private.q) if private is not None else (0, 0)
        self.engine: Engine = _engine(backend, public.n, *primes)
        self.fingerprint = hashlib.sha256(b"vfl paillier key " + self._name()).hexdigest()[:32]
        self._stock = Stock(self.engine.obfuscators)

    @property
    def bits(self) -> int:
        """How many bits the modulus has."""
        return int(self.phe.n.bit_length())

    @property
    def modulus(self) -> int:
        """Plaintexts are numbers modulo n."""
        return int(self.phe.n)

    @property
    def can_decrypt(self) -> bool:
        """Whether the private part is here."""
        return self.phe_private is not None

    def __repr__(self) -> str:
        return f"<{'private' if self.can_decrypt else 'public'} Paillier key of {self.bits} bits>"

    def __reduce__(self) -> Any:
        raise TypeError("a Paillier key is not pickled; send to_bytes(), which holds its public part alone")

    def public(self) -> PaillierKey:
        """The same key without its private part."""
        return PaillierKey(self.phe, backend=self._backend, small_key=self._small, proof=self._proof)

    def to_bytes(self) -> bytes:
        """The public part with its proof, for a peer's `Paillier().key_from_bytes`.

        ConfigError without the private part, unless it came with a proof.
        """
        if not self._proof:
            raise ConfigError(f"{self!r} came without a proof; the party that made it tells others of it")
        return self._name() + self._proof

    @cached_property
    def _proof(self) -> bytes:
        """Empty where there is none: `proof`."""
        if self.can_decrypt:
            return prove(self.phe_private.p, self.phe_private.q)
        return self._given

    def _name(self) -> bytes:
        return self.modulus.to_bytes(size_of(self.modulus), "big")

    def encrypt(
        self, x: Any, fixed: Fixed, *, terms: int | None = None, times: Fixed | None = None, spare: int = 0
    ) -> EncryptedArray:
        """Numbers of any shape, in the range that `fixed` declares.

        terms: the last axis is packed, as many values to a plaintext as leave each room for a sum of `terms`
        of them, each multiplied by a number in the range `times` (default 1). Without `terms` every value has
        a plaintext of its own and all of its room. spare: bits of each plaintext that stay free (`veils`).
        """
        layout = plan(np.shape(x), fixed, self.bits - 2 - spare, terms, times)
        plain = layout.pack(fixed.encode(x).ints)
        hidden = self.engine.multiply(self.engine.wrap(plain), self.obfuscators(layout.count))
        return EncryptedArray(self, hidden, layout, fresh=True)

    def decrypt(self, array: EncryptedArray) -> Array:
        """The numbers: float64, or where there are no fraction bits int64 (objects if that is too small).

        ConfigError for an array of another key, and without the private part. DataError if what comes out
        is not what the array declares.
        """
        if not self.can_decrypt:
            raise ConfigError(f"{self!r} cannot decrypt; only the party that made the key can")
        if array.key.fingerprint != self.fingerprint:
            raise ConfigError(f"{array!r} is encrypted under another key than this")
        layout = array.layout
        return layout.decode(layout.unpack(self.engine.decrypt(array.rows_for(self))))

    def load(self, words: Words, head: Header) -> EncryptedArray:
        """What a peer's `dump` gave. ProtocolError if it is not whole, or not of this key.

        A ciphertext is below n^2 and shares no factor with n (so it is not 0): any other either is not
        from Paillier or would break the key.
        """
        layout = read_header(head, self.fingerprint, self.bits - 2)
        width = word_count(2 * self.bits)
        if words.dtype != np.uint64 or words.shape != (layout.count, width):
            got = f"{words.dtype} {list(words.shape)}"
            raise ProtocolError(f"ciphertexts should be uint64 [{layout.count}, {width}], got {got}")
        n = mpz(self.phe.n)
        product, large = mpz(1), 0
        for c in to_ints(words):
            large += c >= n * n
            product = product * c % n
        if large or gcd(product, n) != 1:
            raise ProtocolError(
                f"of {layout.count} ciphertexts {large} are not below n^2, and "
                f"{'some share' if gcd(product, n) != 1 else 'none shares'} a factor with n; none should"
            )
        return EncryptedArray(
            self, self.engine.load(words.copy() if words.flags.writeable else words), layout
        )

    def obfuscators(self, count: int) -> Cells:
        """From the stock, as far as it goes."""
        return self._stock.take(count)

    def filling(self, limit: int = 4096) -> AbstractContextManager[None]:
        """Stock up on obfuscators in the background: `with key.filling(): reply = await me.recv(...)`."""
        return self._stock.filling(limit)

    def words(self, cells: Cells, layout: Layout) -> Words:
        """Canonical numbers, as they are sent."""
        return self.engine.dump(cells)


def _check_size(bits: int, small_key: bool) -> None:
    if bits < SAFE_BITS and not small_key:
        raise ConfigError(
            f"a Paillier key of {bits} bits can be broken; use at least {SAFE_BITS}, or in a test say "
            "small_key=True"
        )
    if not 128 <= bits <= MOST_BITS:
        raise ConfigError(f"a Paillier key of {bits} bits; supported are up to {MOST_BITS}")


def _check_private(public: PaillierPublicKey, private: PaillierPrivateKey) -> None:
    p, q = private.p, private.q
    if public.n != private.public_key.n or p * q != public.n:
        raise ConfigError("the private key is not that of the public key")
    if not (is_prime(p) and is_prime(q)) or gcd(public.n, (p - 1) * (q - 1)) != 1:
        raise ConfigError("the private key is no Paillier key: n should be prime to (p - 1)(q - 1)")


def backends() -> tuple[Backend, ...]:
    """The engines for this machine, as `VFL_KERNELS` has it; the first is the one that "auto" takes."""
    setting = chosen()
    if setting == "off":
        return ("gmpy2",)
    try:
        from protocols.hazmat import lanes  # and numba, which takes a second to load
    except ImportError as error:  # a numba that does not know this numpy or Python
        warnings.warn(
            f"numba cannot be imported, so Paillier is slower: {error}", RuntimeWarning, stacklevel=2
        )
        return ("gmpy2",)
    if lanes.has_ifma():
        return ("ifma", "gmpy2")
    return ("fma", "gmpy2") if setting == "on" else ("gmpy2",)


def _engine(backend: Backend, n: int, p: int, q: int) -> Engine:
    by_name = backend != "auto"
    name = backend if by_name else backends()[0]
    if name in ("ifma", "fma"):
        from protocols.hazmat.paillier import vector

        if vector.works(name) and n.bit_length() <= vector.MOST_BITS:
            return vector.Vector(name, n, p, q)
        if by_name:
            raise ConfigError(
                f"backend={name!r} cannot serve a key of {n.bit_length()} bits here; use 'auto'"
            )
    elif name != "gmpy2":
        raise ConfigError(f"backend={backend!r}: expected 'auto', 'gmpy2', 'ifma' or 'fma'")
    return Gmp(n, p, q)
