"""Elements of the field of 2^255 - 19 as four 64-bit words: the compiled way in and out of 51-bit limbs."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocols.hazmat.compiled import part

_LOW = np.int64(2**51 - 1)


@part
def thaw(words: Any) -> Any:
    """The five limbs of 51 bits of a row of four words; bit 255 is ignored."""
    w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
    return (
        np.int64(w0) & _LOW,
        np.int64(w0 >> np.uint64(51) | w1 << np.uint64(13)) & _LOW,
        np.int64(w1 >> np.uint64(38) | w2 << np.uint64(26)) & _LOW,
        np.int64(w2 >> np.uint64(25) | w3 << np.uint64(39)) & _LOW,
        np.int64(w3 >> np.uint64(12)) & _LOW,
    )


@part
def carry(t0: Any, t1: Any, t2: Any, t3: Any, t4: Any) -> Any:
    """The same number modulo p, with all above 51 bits carried on: what leaves the top comes back 19-fold."""
    t1 += t0 >> 51
    t2 += t1 >> 51
    t3 += t2 >> 51
    t4 += t3 >> 51
    return (t0 & _LOW) + 19 * (t4 >> 51), t1 & _LOW, t2 & _LOW, t3 & _LOW, t4 & _LOW


@part
def freeze(t0: Any, t1: Any, t2: Any, t3: Any, t4: Any, words: Any) -> None:
    """The words of the number below p that these limbs stand for, each within -2^57 to 2^57."""
    # The first carry leaves at most 2^11 above the lowest limb, or as much below it; then one is carried at
    # most, and comes back only if all limbs but the lowest were at their end, which then are not any more.
    t0, t1, t2, t3, t4 = carry(*carry(*carry(t0, t1, t2, t3, t4)))
    # Below 2^255 a number is p or more if 19 more make 2^255 of it.
    over = (t4 + ((t3 + ((t2 + ((t1 + ((t0 + 19) >> 51)) >> 51)) >> 51)) >> 51)) >> 51
    t0, t1, t2, t3, t4 = carry(t0 + 19 * over, t1, t2, t3, t4 - (over << 51))
    u0, u1, u2, u3, u4 = np.uint64(t0), np.uint64(t1), np.uint64(t2), np.uint64(t3), np.uint64(t4)
    words[0] = u0 | u1 << np.uint64(51)
    words[1] = u1 >> np.uint64(13) | u2 << np.uint64(38)
    words[2] = u2 >> np.uint64(26) | u3 << np.uint64(25)
    words[3] = u3 >> np.uint64(39) | u4 << np.uint64(12)
