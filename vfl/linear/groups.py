"""How many rows are behind the gradient of a column, as its owner can tell before it enters.

No party: each owner of columns asks this of its own. Who follows the protocol learns the sum over rows of a
column times residuals. If the column is the same in all rows but few, or few rows are so far out that they
hold most of it, that is nearly these rows' residuals, and tells their labels. Nobody else sees the columns:
an owner that does not check, or that makes columns up, is not found out, and `vfl.linear.gradient` says what
it learns.
"""

from __future__ import annotations

import numpy as np

from protocols.arrays import Array
from protocols.errors import PolicyError
from protocols.party import Guard


def rows_behind(x: Array) -> Array:
    """For each column of x (n, d): how many rows differ from its commonest value; or, if these are fewer, are
    needed to hold more than half of its sum of squares around its mean."""
    found = []
    for column in x.T:
        _, counts = np.unique(column, return_counts=True)
        held = np.sort((column - column.mean()) ** 2)[::-1].cumsum()
        half = 1 + np.searchsorted(held, held[-1] / 2, side="right")
        found.append(min(len(column) - counts.max(), half))
    return np.array(found, np.int64)


def check_groups(x: Array, names: list[str], guard: Guard) -> None:
    """PolicyError for columns x (n, d) with fewer rows behind them than a policy's `min_group` asks for."""
    try:
        guard.group(0)
    except PolicyError as error:
        refused = str(error.args[0]).partition(";")[0]
    else:
        return  # nothing is asked for
    few = [name for name, rows in zip(names, rows_behind(x).tolist(), strict=True) if _refuses(guard, rows)]
    if few:
        told = f"{refused}: the gradient of {len(few)} of {len(names)} columns"
        found = PolicyError(
            f"{told}, as of {few[0]!r}. At least so many of {len(x)} rows should differ from its commonest "
            "value, and fewer should not hold half of its sum of squares; merge rare values, clip or take "
            "logarithms, leave it out, or raise batch_size"
        )
        found.clause, found.told = "min_group", told
        raise found


def _refuses(guard: Guard, rows: int) -> bool:
    try:
        guard.group(rows)
    except PolicyError:
        return True
    return False
