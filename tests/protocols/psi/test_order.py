"""The order of ids is that of their bytes."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.psi.order import by_bytes

alike = st.tuples(st.sampled_from([b"", b"customer-", b"customer-\x00"]), st.binary(max_size=20))


@given(st.lists(alike.map(b"".join)))
def test_ids_are_sorted_as_bytes_are(values: list[bytes]) -> None:
    array = pa.array(values, pa.large_binary())
    assert [values[i] for i in by_bytes(array)] == sorted(values)


@pytest.mark.parametrize("start", [0, 3])
def test_a_slice_is_sorted_by_itself(start: int) -> None:
    values = [b"b", b"a", b"aa", b"a\0", b"12345678z", b"12345678a", b""]
    array = pa.array(values, pa.large_binary()).slice(start)
    assert [values[start + i] for i in by_bytes(array)] == sorted(values[start:])
