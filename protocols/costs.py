"""What an operation costs under the virtual clock, in FLOPs.

`Party.compute` is told a cost: FLOPs as a number (torch modules: see `flops`), or counts of named
operations, as in `{"x25519": 2000}`, priced here. Prices are measured seconds of one operation
on a reference core that is taken to do `REFERENCE_SPEED` FLOP a second, so that one number
stands for all work of a party and its speed scales all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from protocols.errors import ConfigError, nearest

REFERENCE_SPEED = 1e10  # FLOP per second

SECONDS_PER_OPERATION: dict[str, float] = {
    "x25519": 49e-6,  # one scalar multiplication through `cryptography`
    "elligator2": 8e-6,  # one id hashed to a point, through gmpy2
    "point_check": 3.5e-6,  # one received point found to be on the curve
    "id_match": 5e-7,  # one mark in the comparison of blinded ids
    # Paillier of 2048 bits through gmpy2, one ciphertext:
    "paillier_encrypt": 0.9e-3,  # by the key's owner
    "paillier_refresh": 2.6e-3,  # re-randomised by anybody else
    "paillier_decrypt": 6e-3,
    "paillier_product": 9e-6,  # of two ciphertexts: one addition
    "base_ot": 250e-6,  # one seed of an oblivious transfer at one side, through libsodium
    "id_hash": 2e-7,  # one id's keyed digest
    "cuckoo_insert": 1e-7,  # one id put into a cuckoo table
    "oprf_row": 2e-7,  # one row of a bit matrix expanded, transposed and masked
    "oprf_value": 3e-7,  # one value of a pseudorandom function from a row
}

Cost = float | Mapping[str, int]


def flops(cost: Cost) -> float:
    """Convert `cost` to FLOPs. Raises ConfigError for an operation that has no price."""
    if isinstance(cost, float | int):
        if not 0 <= cost < math.inf:
            raise ConfigError(f"a cost of {cost} FLOPs; expected a number of at least 0")
        return float(cost)
    total = 0.0
    for name, count in cost.items():
        if name not in SECONDS_PER_OPERATION:
            raise ConfigError(f"operation {name!r} has no price{nearest(name, SECONDS_PER_OPERATION)}")
        if count < 0:
            raise ConfigError(f"a cost of {count} {name!r}; expected a count of at least 0")
        total += count * SECONDS_PER_OPERATION[name] * REFERENCE_SPEED
    return total
