"""What every vertical program asks of a party's seat before any line opens.

Takes part: one party, about its own table. What is said names columns to that party alone.
"""

from __future__ import annotations

import pandas as pd

from protocols.data.tables import check_classes, check_numbers, check_rows, column, labels
from protocols.errors import ConfigError
from protocols.programs import Seat


def table_of(seat: Seat) -> pd.DataFrame:
    """Its table. ConfigError where it has none."""
    if seat.table is None:
        raise ConfigError("has no table; every party of a vertical model brings columns or the target")
    return seat.table


def id_of(seat: Seat) -> str:
    """Its id column. ConfigError where none is named, or several are."""
    if seat.one_id is None:
        raise ConfigError("no id column is named; rows of a vertical model are matched by their ids")
    return seat.one_id


def target_of(seat: Seat, *, classes: bool) -> pd.Series:
    """The label party's target, of classes or of numbers.

    ConfigError where it is not named or is the id, DataError for values that cannot be learnt.
    """
    if seat.target is None:
        raise ConfigError("no target column is named at the label party")
    if seat.target == seat.one_id:
        raise ConfigError(f"column {seat.target!r} is both id and target; choose another id column")
    table = table_of(seat)
    y = column(table, seat.target, "target")
    check_rows(table)
    if classes:
        check_classes(labels(y))
    else:
        check_numbers(y)
    return y
