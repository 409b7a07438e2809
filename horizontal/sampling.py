"""Which clients take part in a round.

Takes part: the server alone. A client learns in which rounds it was chosen, and nothing about others.
Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017 (fraction C of the clients, uniformly, anew in each round).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np

from protocols.errors import ConfigError


def check_fraction(fraction: float) -> float:
    """`fraction` if it lies in (0, 1]; ConfigError otherwise."""
    if not isinstance(fraction, int | float | np.floating) or not 0 < fraction <= 1:
        raise ConfigError(f"fraction={fraction!r} should be above 0 and at most 1")
    return fraction


def sample(roster: Sequence[str], fraction: float, rng: np.random.Generator) -> tuple[str, ...]:
    """ceil(fraction * K) of the K names in `roster`, uniformly, without replacement, in roster order."""
    # A product such as 0.1 * 30 lies a rounding error above 3, and must not become 4.
    count = max(1, ceil(check_fraction(fraction) * len(roster) - 1e-9))
    if count >= len(roster):
        return tuple(roster)
    return tuple(roster[i] for i in np.sort(rng.choice(len(roster), size=count, replace=False)))


def others(roster: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
    """The names in `roster` that are not in `chosen`, in roster order."""
    taken = frozenset(chosen)
    return tuple(name for name in roster if name not in taken)
