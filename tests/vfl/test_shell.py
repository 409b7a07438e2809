"""What vertical estimators share: weights of rows that cannot be meant are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from protocols.errors import DataError
from vfl.shell import weights_of


def test_weights_come_back_as_numbers_in_their_order() -> None:
    assert weights_of(pd.Series([2, 0, 1], index=[5, 3, 4]), 3).tolist() == [2.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1.0, 1.0], r"each of the table's 3 rows, got shape \[2\]"),
        (1.0, r"got shape \[\]"),
        ([1.0, -1.0, np.nan], "of 3 sample weights 2 are negative, infinite or missing"),
        ([0.0, 0.0, 0.0], "0 are not 0"),
        (["a", "b", "c"], "got list of something else"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(given: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        weights_of(given, 3)
