"""Arrays of Paillier ciphertexts over `phe` keys: sums of numbers that only the key's owner can read.

One party makes a key and keeps its private part. Whoever has the public part can encrypt, add ciphertexts and
multiply them by plain numbers; only the owner can decrypt. Others learn an array's shape, scale and declared
bounds, no value. What the owner learns of a result is the result, in full: that is for a protocol to limit.

Assumes that n-th residues modulo n^2 look random (Paillier 1999), and parties that follow the protocol:
ciphertexts are malleable, and nothing proves what is inside one. A decryption that fails says only that.

`fixed` says how numbers become integers, `layout` how many share a plaintext and when a sum is refused,
`array` what can be computed, `keys` who encrypts and decrypts, `gmp` what the arithmetic assumes and what its
timing shows. `plain` is the same with nothing encrypted; `convert` goes to and from `phe.EncryptedNumber`.
"""

from protocols.hazmat.paillier.array import EncryptedArray, concatenated
from protocols.hazmat.paillier.convert import from_phe, to_phe
from protocols.hazmat.paillier.fixed import Encoded, Fixed
from protocols.hazmat.paillier.keys import Paillier, PaillierKey
from protocols.hazmat.paillier.plain import Plain, PlainKey

__all__ = [
    "Encoded",
    "EncryptedArray",
    "Fixed",
    "Paillier",
    "PaillierKey",
    "Plain",
    "PlainKey",
    "concatenated",
    "from_phe",
    "to_phe",
]
