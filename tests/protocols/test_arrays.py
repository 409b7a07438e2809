"""Named arrays are a value: they do not change, they compare by content, they add up."""

from __future__ import annotations

import pickle
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from protocols.arrays import Arrays, read_only, to_torch, weighted_mean
from protocols.errors import DataError


def pair(scale: float = 1.0) -> Arrays:
    return Arrays(
        {
            "w": (np.arange(6, dtype=np.float32) * scale).reshape(2, 3),
            "n": np.array(4),
            "m": np.array([True, False]),
        }
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_nothing_can_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        pair()["w"][0, 0] = 1
    with pytest.raises(TypeError):
        cast(Any, pair())["w"] = np.zeros(1)
    own = np.zeros(3)
    with pytest.raises(ValueError, match="read-only"):
        read_only(own)[0] = 1
    own[0] = 1  # the owner's array is not touched


def test_a_tensor_owns_its_memory() -> None:
    for array in (read_only(np.ones(3)), np.ones((4, 4))[::2, ::-1], np.array(2.0)):
        tensor = to_torch(array)
        tensor += 1
        assert (array + 1 == tensor.numpy()).all() and tensor.shape == array.shape


def test_equality_and_hash_go_by_content_in_any_order() -> None:
    turned = Arrays(reversed(list(pair().items())))
    assert pair() == turned and hash(pair()) == hash(turned)
    assert len({pair(), turned, pair(2.0), pair().map(lambda a: a.astype(np.float64))}) == 3
    assert pair() != {"w": 1}


def test_sums_go_name_by_name_and_keep_float_types() -> None:
    total = pair() + pair()
    assert (total["w"] == 2 * pair()["w"]).all() and total["w"].dtype == np.float32
    assert int(total["n"]) == 8 and total["m"].tolist() == [2, 0]
    assert ((pair() - pair())["m"] == 0).all()
    for half in (pair() * 0.5, 0.5 * pair(), cast(Arrays, np.float64(0.5) * cast(Any, pair()))):
        assert (half["w"] == pair()["w"] / 2).all() and half.keys() == pair().keys()
    assert (pair() * 0.5)["w"].dtype == np.float32


def test_what_does_not_pair_is_refused() -> None:
    with pytest.raises(DataError, match=r"\['m', 'n', 'w'\] and \['v'\] do not pair"):
        pair() + Arrays({"v": np.ones(1)})
    with pytest.raises(TypeError):
        pair() * cast(Any, pair())


def test_sizes_and_text() -> None:
    assert (pair().size, pair().nbytes, len(pair())) == (9, 24 + 8 + 2, 3)
    assert repr(pair()) == "Arrays(w: float32[2, 3], n: int64[], m: bool[2])"
    assert pickle.loads(pickle.dumps(pair())) == pair()  # noqa: S301  # our own bytes


def test_like_is_about_names_shapes_and_dtypes() -> None:
    assert pair().like(pair(3.0))
    for other in (Arrays(), pair().map(lambda a: a.reshape(-1)), pair().map(lambda a: a.astype(np.int8))):
        assert not pair().like(other) and not other.like(pair())


def test_a_module_round_trips_and_shares_no_memory() -> None:
    module = network()
    weights = Arrays.from_module(module)
    other = network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert Arrays.from_module(other) != weights
    weights.load_into(other)
    assert Arrays.from_module(other) == weights
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert Arrays.from_module(module) == weights


def test_counters_are_rounded_when_they_are_loaded() -> None:
    module = network()
    (Arrays.from_module(module).map(lambda a: a + 2.6)).load_into(module)
    counter = dict(module.named_buffers())["1.num_batches_tracked"]
    assert counter.dtype == torch.int64 and int(counter) == 3


def test_what_does_not_fit_a_module_leaves_it_as_it_was() -> None:
    module = network()
    before = Arrays.from_module(module)
    wrong = {name: array + 1 for name, array in before.items()}
    wrong["2.bias"] = np.ones(7, np.float32)
    with pytest.raises(DataError, match=r"2.bias: the module has \(2,\), weights \(7,\)"):
        Arrays(wrong).load_into(module)
    with pytest.raises(DataError, match="same model"):
        Arrays({"w": np.ones(1)}).load_into(module)
    assert Arrays.from_module(module) == before


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 9)), min_size=1, max_size=6))
def test_the_weighted_mean_is_numpys(parts: list[tuple[float, float]]) -> None:
    values = [Arrays({"w": np.full(3, value), "n": np.array(int(value))}) for value, _ in parts]
    weights = [weight for _, weight in parts]
    mean = weighted_mean(values, weights)
    assert np.allclose(mean["w"], np.average([v for v, _ in parts], weights=weights), atol=1e-12)
    exact = np.average([int(v) for v, _ in parts], weights=weights)
    assert mean["n"].dtype.kind == "i" and abs(mean["n"] - exact) <= 0.5 + 1e-12


def test_the_weighted_mean_of_one_is_itself() -> None:
    values = Arrays({"w": np.random.default_rng(0).normal(size=9).astype(np.float32)})
    assert weighted_mean([values], [17]) == values


@pytest.mark.parametrize(
    ("values", "weights", "said"),
    [
        ([], [], "nothing to average"),
        ([pair()], [0], "sum to 0"),
        ([pair()], [float("nan")], "sum to nan"),
        ([pair(), pair()], [3, -1], "none below 0"),
        ([pair(), Arrays({"w": np.ones((2, 3))})], [1, 1], "differ in names or shapes"),
        ([pair(), pair().map(lambda a: a.reshape(1, *a.shape))], [1, 1], "differ in names or shapes"),
    ],
)
def test_what_cannot_be_averaged_is_refused(values: list[Arrays], weights: list[float], said: str) -> None:
    with pytest.raises(DataError, match=said):
        weighted_mean(values, weights)
