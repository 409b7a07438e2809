"""How well ids can be guessed, in bits and in plain words. One party, about its own ids; nothing leaves it.

Private set intersection hides ids from whoever cannot guess them. A peer that takes part can put guesses into
its own set and see which are shared, as many a run as it announces (by KKRT, if it does not keep to the
protocol, any number: see `protocols.psi.kkrt`); who does not take part cannot, since the hash's key is fresh
and known to the parties alone. So what matters is how many ids are possible. Here that is
estimated from the ids themselves, as an upper bound: what an attacker who knows more of the numbering scheme
(check digits, area codes) has to try is less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from protocols.psi.ids import Ids

WEAK = 40.0  # bits; a million guesses a run go through 2^40 in a million runs
SAMPLE = 10_000  # ids that are looked at


@dataclass(frozen=True)
class Guessable:
    """bits: of the number of ids that are possible, at most; ids: how many there are."""

    bits: float
    ids: int

    @property
    def weak(self) -> bool:
        """Whether a peer could go through all ids that are possible."""
        return self.ids > 0 and self.bits < WEAK

    def __str__(self) -> str:
        if not self.ids:
            return "it has no ids."
        possible = f"about 2^{self.bits:.0f}" if self.bits > 20 else f"about {2**self.bits:,.0f}"
        said = f"{possible} ids of this form are possible"
        if not self.weak:
            return f"{said}: too many to go through."
        hit = min(1.0, self.ids / 2**self.bits)
        some = f"one guess in {1 / hit:,.0f} is" if hit < 0.5 else "most guesses are"
        return (
            f"{said}, few as with phone numbers or counters: a peer that puts guesses into its own set finds "
            f"out of each whether it is here, and {some}. Let its policy limit how many it may ask about: "
            "max_asked_job, max_asked_day, max_asked."
        )


def guessable(ids: Ids) -> Guessable:
    """An upper bound on how many ids look like these: for each length, the characters seen in each place."""
    n = len(ids)
    if not n:
        return Guessable(0.0, 0)
    sample = ids.sample(SAMPLE)
    lengths = pc.binary_length(sample).to_numpy()
    bits = math.log2(n)
    for length in np.unique(lengths):
        chosen = sample.filter(pa.array(lengths == length))
        letters = np.frombuffer(b"".join(chosen.to_pylist()), np.uint8).reshape(len(chosen), int(length))
        seen = [len(np.unique(letters[:, place])) for place in range(int(length))]
        # More characters are possible in a place than are seen there, if few ids are looked at.
        possible = [min(256, count * 2) if len(letters) < 4 * count else count for count in seen]
        bits = float(np.logaddexp2(bits, sum(math.log2(count) for count in possible)))
    return Guessable(bits, n)
