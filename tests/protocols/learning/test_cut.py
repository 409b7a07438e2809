"""Smashed data crosses unchanged, whatever its rank, and what does not fit the cut is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ProtocolError
from protocols.learning.cut import CutGradient, LabelledSmashed, Smashed, from_wire, to_wire
from protocols.wire.codec import decode, encode


@given(st.integers(1, 5), st.lists(st.integers(1, 4), max_size=4), st.integers(0, 2**31))
def test_tensors_of_any_rank_cross_bit_for_bit(rows: int, shape: list[int], seed: int) -> None:
    sent = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))
    told = decode(Smashed, encode(Smashed(h=to_wire(sent))))
    assert told.h.shape == (rows, sent[0].numel())
    assert torch.equal(from_wire(told.h, shape, rows), sent)


def test_strided_memory_and_gradient_history_stay_behind() -> None:
    sent = torch.randn(6, 4, requires_grad=True).t()
    told = decode(CutGradient, encode(CutGradient(g=to_wire(sent))))
    came = from_wire(told.g, (6,))
    assert torch.equal(came, sent) and not came.requires_grad
    came.zero_()  # its own memory: the received bytes are read-only
    assert told.g.any()


@pytest.mark.parametrize(("shape", "rows"), [((3,), None), ((2, 3), 2), ((2, 2), 4)])
def test_another_cut_or_batch_is_refused(shape: tuple[int, ...], rows: int | None) -> None:
    with pytest.raises(ProtocolError, match="same model and cut"):
        from_wire(to_wire(torch.zeros(3, 4)), shape, rows)


def test_every_row_has_its_label() -> None:
    with pytest.raises(ValueError, match="b = 2, elsewhere it is 3"):
        LabelledSmashed(h=to_wire(torch.zeros(3, 4)), labels=torch.zeros(2, dtype=torch.int64).numpy())
