"""Bytes from outside, by a fuzzer that follows coverage: `python -m tests.fuzz [--seconds 60] [target ...]`.

A file `fuzz_<topic>.py` here holds functions marked `@target`. Each takes bytes, states in one sentence what
holds for any, and fails if it does not. `seeds` are inputs that get far, to begin with.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Target(NamedTuple):
    """Something that takes foreign bytes."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]


targets: dict[str, Target] = {}


def target(
    seeds: Callable[[], Sequence[bytes]],
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Register a function of bytes under its name."""

    def register(check: Callable[[bytes], None]) -> Callable[[bytes], None]:
        if check.__name__ in targets:
            raise ValueError(f"two targets are named {check.__name__!r}")
        targets[check.__name__] = Target(check, seeds)
        return check

    return register


def discover() -> dict[str, Target]:
    """Import every file of targets."""
    for found in pkgutil.iter_modules(__path__):
        if found.name.startswith("fuzz_"):
            importlib.import_module(f"{__name__}.{found.name}")
    return targets
