"""Laws of packing: what was packed is what is unpacked, and anything else is an error that says where."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from protocols.arrays import Array, Arrays
from protocols.errors import ConfigError, DataError
from protocols.packing import filled, pack, unpack
from protocols.parts import Part


@dataclass(frozen=True)
class Inner:
    x: Array
    flags: Array
    note: Any = None


@dataclass(frozen=True)
class Other:
    x: Array
    only: int


@dataclass(frozen=True)
class Whole:
    name: str
    label: bool | int | str
    rate: float
    kind: Literal["a", "b"]
    many: tuple[Inner | Other, ...]
    by: Mapping[str, int]
    losses: list[float]
    maybe: Inner | None
    weights: Arrays
    module: nn.Module


def whole(**changes: Any) -> Whole:
    told: dict[str, Any] = {
        "name": "größe",
        "label": True,
        "rate": 0.1,
        "kind": "b",
        "many": (
            Inner(np.arange(6.0).reshape(2, 3), np.arange(13) % 3 == 0, ["x", 1]),
            Other(np.zeros((0, 3), np.int32), 2**100),
        ),
        "by": {"shop": 3},
        "losses": [1.5, math.inf, math.nan],
        "maybe": None,
        "weights": Arrays({"0.w": np.ones(2, np.float32), "0.count": np.array(7)}),
        "module": nn.Linear(2, 1),
    }
    return Whole(**(told | changes))


def there_and_back(value: Whole) -> Whole:
    tree, arrays = pack(value)
    return unpack(Whole, json.loads(json.dumps(tree, allow_nan=False)), arrays)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, nn.Module):
        return Arrays.from_module(filled(b, nn.Linear(2, 1))) == Arrays.from_module(a)
    return type(a) is type(b) and (a == b or (a != a and b != b))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"maybe": Inner(np.zeros((3, 0)), np.zeros((2, 256), np.bool_))},
        {"label": 1},
        {"label": "1", "many": (), "by": {}, "losses": [], "weights": Arrays({})},
        {"maybe": Inner(np.array(2.5), np.array(True), {"b": [None]})},
    ],
)
def test_what_is_packed_is_unpacked(changes: dict[str, Any]) -> None:
    value = whole(**changes)
    assert same(value, there_and_back(value))


@given(st.lists(st.floats() | st.just(1.0)), st.booleans() | st.integers() | st.text())
def test_every_number_and_label_comes_back(losses: list[float], label: Any) -> None:
    value = whole(losses=losses, label=label)
    assert same(value, there_and_back(value))


def test_arrays_lie_under_their_paths_and_truth_as_bits() -> None:
    tree, arrays = pack(whole())
    assert tree["many"][0]["x"] == [2, 3] and arrays["many.0.x"].shape == (2, 3)
    assert tree["many"][0]["flags"] == {"bits": [13]} and arrays["many.0.flags"].shape == (2,)
    assert {"weights.0.w", "module.weight", "module.bias"} <= {*arrays}


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("name",), 3, "name should be str, got int"),
        (("label",), 1.5, "label should be str, got float"),
        (("rate",), True, "rate should be float, got bool"),
        (("kind",), "c", "kind should be .*Literal.*, got str"),
        (("many",), {}, "many should be list, got dict"),
        (("many", 0, "x"), [3, 2], r"many.0 should be Other, got dict"),
        (("many", 1), {"x": [0, 3]}, "many.1 should be Other, got dict"),
        (("by",), {"shop": "3"}, "by.shop should be int, got str"),
        (("by",), [], "by should be .*, got list"),
        (("losses",), ["1.5"], "losses.0 should be float, got str"),
        (("maybe",), {"x": [1], "flags": [1], "note": None}, "maybe.x should be an array, got NoneType"),
        (("weights",), ["0.w", 3], "weights.1 should be str, got int"),
        (("module",), ["weight"], "1 arrays belong to nothing: module.bias"),
        (("name",), None, "name should be str, got NoneType"),
        (("more",), 1, "the whole should be Whole, got dict"),
    ],
)
def test_a_tree_that_is_none_says_where(place: tuple[Any, ...], value: Any, said: str) -> None:
    tree, arrays = pack(whole())
    inner = tree
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    with pytest.raises(DataError, match=said):
        unpack(Whole, tree, arrays)


@pytest.mark.parametrize("shape", [[14], [-13], [-1, -13], [2**60], ["13"], [13.0], "13", None])
def test_bits_that_are_none_are_refused(shape: Any) -> None:
    tree, arrays = pack(Inner(np.zeros(1), np.ones(13, np.bool_)))
    tree["flags"]["bits"] = [64] if shape == [14] else shape
    with pytest.raises(DataError, match="flags"):
        unpack(Inner, tree, arrays)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.sampled_from([f.name for f in fields(Whole)]))
def test_anything_on_disk_is_a_value_or_an_error_of_ours(value: Any, name: str) -> None:
    tree, arrays = pack(whole())
    tree[name] = value
    for found in (tree, value):
        try:
            made = unpack(Whole, found, arrays)
        except DataError:
            continue
        assert same(made.many, whole().many) or name == "many"


def test_a_network_is_filled_into_one_of_its_shape() -> None:
    net = nn.Linear(2, 1)
    back = unpack(Whole, *pack(whole(module=net))).module
    blank = nn.Linear(2, 1)
    before = blank.weight.clone()
    made = filled(back, blank)
    assert isinstance(made, nn.Linear)
    assert torch.equal(made.weight, net.weight) and torch.equal(blank.weight, before)  # a copy
    with pytest.raises(ConfigError, match="the run does not fit the model: .*; bring the saved one"):
        filled(back, nn.Linear(3, 1))
    assert same(whole(module=net), there_and_back(whole(module=back)))  # packed again before it is filled


def test_a_part_holds_settings_and_what_is_kept_apart() -> None:
    part = Part.of(
        "m", "bank", Inner(np.ones(2), np.ones(1, np.bool_)), {"rate": np.float64(0.5), "cut": (1, 2)}
    )
    assert part.settings == {"rate": 0.5, "cut": [1, 2]} and type(part.settings["rate"]) is float
    assert same(part.read(Inner), Inner(np.ones(2), np.ones(1, np.bool_)))
    with pytest.raises(
        DataError, match="^bank: this part of m is none that this release writes: .*train again"
    ):
        part.read(Other)
    with pytest.raises(DataError, match="bank: settings should be JSON values, got an array: w"):
        Part.of("m", "bank", Inner(np.ones(2), np.ones(1, np.bool_)), {"w": np.ones(2)})
