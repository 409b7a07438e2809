"""What a feature party says of its columns, held against what the label party knows: its own numbers.

Takes part: the label party, alone; it looks at nothing but what it was sent. Each check raises ProtocolError
that names the party. What a party that passes all of them can still learn is in docs/guides/boosting.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from protocols.arrays import Array
from protocols.errors import ProtocolError


@dataclass(frozen=True)
class Above:
    """The nodes whose children a level has, pair by pair: by what each was split."""

    sums: Array = field(repr=False)  # (pairs, columns, bins + 1, all statistics)
    column: Array  # (pairs,) among the round's columns
    left: Array = field(repr=False)  # (pairs, bins + 1) bool: which bins went left


def check_sums(
    sums: Array, values: Sequence[Array], above: Above | None, sides: Sequence[tuple[str, slice]]
) -> None:
    """Refuse sums that no division of the nodes' rows into bins has, as far as sums can tell.

    sums: (nodes, columns, bins + 1, 3) gradient, hessian and rows of each bin, that of gaps first. values: of
    each node, its rows' (n, 3). sides: whose columns are where.
    """
    total, low, high = (
        np.stack([how(rows, axis=0) for rows in values])[:, None] for how in (np.sum, np.min, np.max)
    )
    whole = (sums.sum(axis=2) == total).all(axis=2)  # (nodes, columns)
    rows = sums[..., 2:].clip(0, total[..., None, 2:])
    likely = (sums >= rows * low[:, :, None]) & (sums <= rows * high[:, :, None])
    likely = likely.all(axis=(2, 3)) & (sums[..., 2] >= 0).all(axis=2)
    same = _as_divided(sums, above)
    for party, at in sides:
        for right, said in (
            (whole, "bins that do not add up to all rows of their node"),
            (likely, "bins that no rows of their node add up to"),
            (same, "bins with rows that an earlier split by the same column sent the other way"),
        ):
            if wrong := int(np.count_nonzero(~right[:, at])):
                columns = right[:, at].shape[1]
                raise ProtocolError(
                    f"sums from {party}: of {len(sums)} nodes and {columns} columns, {wrong} histograms have "
                    f"{said}; its columns are not divided as it says"
                )


def check_side(party: str, values: Array, claimed: Array) -> None:
    """Refuse rows that go left if they do not add up to what the bins that go left did.

    values: of these rows, (n, 3). claimed: (3,).
    """
    if not np.array_equal(values.sum(axis=0), claimed):
        raise ProtocolError(
            f"rows from {party}: those that go left do not add up to the sums of the bins that go left; its "
            "columns are not divided as it says"
        )


def _as_divided(sums: Array, above: Above | None) -> Array:
    """(nodes, columns) bool: False where a child has rows in a bin that went to the other side above."""
    same = np.ones(sums.shape[:2], bool)
    if above is not None:
        pairs = np.arange(len(above.column))
        for child, here in enumerate((above.left, ~above.left)):
            empty = (sums[2 * pairs + child, above.column] == 0).all(axis=2)  # (pairs, bins + 1)
            same[2 * pairs + child, above.column] = (empty | here).all(axis=1)
    return same
