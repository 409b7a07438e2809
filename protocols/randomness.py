"""Where random numbers come from that are drawn from a seed. No party, and no line.

Over a network each party has a seed of its own for each job, from the operating system (`new_seed`), and
tells it to nobody; in one process all have the caller's. `Party.rng` makes one generator of it a purpose.

torch has one generator a process. Whoever draws from it seeds it, and puts it back as it was; threads
take turns, or one fit would draw from another's seed.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from protocols.errors import ConfigError

_TURN = threading.RLock()
_SHORT = 2**63  # seeds below are a user's, and torch's own; secret ones are longer
_STATE = 5056  # bytes of the state of torch's generator: a header of 24, 624 words of 8, a cached normal
_WORDS = slice(24, 24 + 624 * 8)


def new_seed() -> int:
    """Return a 256-bit seed from the operating system that nobody can guess."""
    return secrets.randbits(256)


def key_of(*said: object) -> int:
    """Return the first 128 bits of SHA-256 over the texts `said`."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, said)).encode()).digest()[:16], "big")


def philox(key: int) -> np.random.Generator:
    """Return a generator keyed by 128 bits. A key for one purpose tells nothing about the key for another."""
    return np.random.Generator(np.random.Philox(key=key))


def drawn_seed(rng: np.random.Generator) -> int:
    """Draw a 256-bit seed, as a number, for functions such as `torch_seeded`."""
    return int.from_bytes(rng.bytes(32), "big")


@contextmanager
def torch_seeded(seed: int | None = None) -> Iterator[None]:
    """Within, torch draws on the CPU from `seed` (None: from where it is); afterwards its state is as before.

    A seed below 2**63 is torch's own, of which it looks at 32 bits: few enough to try them all. A secret one
    is longer, and 128 bits of it count.
    Only the CPU's generator: `torch.manual_seed` would also seed accelerators, which nothing here restores.
    """
    generator = torch.default_generator
    with _TURN:
        before = generator.get_state()
        if seed is not None and seed < _SHORT:
            generator.manual_seed(seed)
        elif seed is not None:
            generator.set_state(_state(seed))
        try:
            yield
        finally:
            generator.set_state(before)


@contextmanager
def standard_torch() -> Iterator[None]:
    """Within this context, torch makes float32 tensors on the CPU, whatever its defaults are."""
    dtype = torch.get_default_dtype()
    elsewhere = torch.get_default_device().type != "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu") if elsewhere else nullcontext():
            yield
    finally:
        torch.set_default_dtype(dtype)


def _state(seed: int) -> torch.Tensor:
    """Return a state for torch's Mersenne Twister with every word drawn from `seed`."""
    state = torch.Generator().get_state()
    if len(state) != _STATE:
        raise ConfigError(
            f"torch {torch.__version__} keeps its generator in {len(state)} bytes, expected {_STATE}; "
            "install the release in constraints.txt"
        )
    words = philox(key_of("torch", seed)).integers(2**32, size=624, dtype=np.uint64)
    state.numpy()[_WORDS] = words.view(np.uint8)
    return state
