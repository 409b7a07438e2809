"""How unequal the weights of rows may be, in every model that takes `sample_weight`.

Takes part: the label party, about its own rows; where weights can be read, also whoever reads them. A sum in
which a few rows weigh more than all others is about these few, whatever number of rows is behind it: that is
how weights get around a policy's `min_group`. What bounded weights still tell is in docs/guides/policy.md.
"""

from __future__ import annotations

import numpy as np

from protocols.arrays import Array
from protocols.errors import DataError

# A class that counts as much as one a thousand times as frequent is within it; propensities of 0.1 % and
# exposures of a day in a year are, too.
LARGEST = 1024  # of the smallest weight above 0
FEWEST = 10  # rows that carry more than half: the `min_group` of a policy that says nothing else


def carrying_half(weights: Array) -> int:
    """How many rows, the heaviest first, it takes to carry more than half of all weight."""
    carried = np.cumsum(np.sort(weights)[::-1])
    return int(np.searchsorted(carried, 0.5 * carried[-1], side="right")) + 1


def check_weights(weights: Array) -> None:
    """DataError where the weights (rows,) that a model learns with make it one of a few rows.

    The largest may be `LARGEST` times the smallest that is not 0, and no fewer than `FEWEST` rows may carry
    more than half of the whole, unless all weigh the same. None is negative, and some are not 0.
    """
    most, least = float(weights.max()), float(weights[weights > 0].min())
    if most == float(weights.min()):
        return
    if most > LARGEST * least:
        raise _refused(
            f"the largest sample_weight is {most / least:.4g} times the smallest that is not 0, expected at "
            f"most {LARGEST} times; clip them"
        )
    if (few := carrying_half(weights)) < FEWEST:
        raise _refused(
            f"{few} of {len(weights)} rows carry more than half of all sample_weight, expected at least "
            f"{FEWEST}: sums would be about these few; clip the weights, or bring more rows"
        )


def _refused(said: str) -> DataError:
    error = DataError(said)
    error.told = "sample_weight is too unequal; clip it"  # no number that follows from it
    return error
