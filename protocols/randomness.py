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
    """A seed that nobody can guess, from the operating system: 256 bits."""
    return secrets.randbits(256)


def key_of(*said: object) -> int:
    """128 bits of SHA-256 over all that is `said`, as text."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, said)).encode()).digest()[:16], "big")


def philox(key: int) -> np.random.Generator:
    """A generator keyed by 128 bits. Keys of different purposes say nothing of each other."""
    return np.random.Generator(np.random.Philox(key=key))


def drawn_seed(rng: np.random.Generator) -> int:
    """A seed of 256 bits for what takes a number, as `torch_seeded` does."""
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
    """Within, torch makes float32 tensors on the CPU, as networks here are, whatever it was told to make."""
    dtype = torch.get_default_dtype()
    elsewhere = torch.get_default_device().type != "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu") if elsewhere else nullcontext():
            yield
    finally:
        torch.set_default_dtype(dtype)


def _state(seed: int) -> torch.Tensor:
    """A state of torch's Mersenne Twister of which each word is drawn from `seed`."""
    state = torch.Generator().get_state()
    if len(state) != _STATE:
        raise ConfigError(
            f"torch {torch.__version__} keeps its generator in {len(state)} bytes, expected {_STATE}; "
            "install the release in constraints.txt"
        )
    words = philox(key_of("torch", seed)).integers(2**32, size=624, dtype=np.uint64)
    state.numpy()[_WORDS] = words.view(np.uint8)
    return state
