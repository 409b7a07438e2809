"""Laws of trees as arrays: a walk reaches the leaf that following one row by hand reaches."""

from __future__ import annotations

import numpy as np

from protocols.trees.forest import Forest, Growing, Splits, Walk


def grown() -> tuple[Forest, dict[str, Splits]]:
    """Two trees: bank's column 0, then shop's 0 on the left; and a lone leaf."""
    growing = Growing(Forest.empty(("bank", "shop")))
    root = growing.root(0)
    left, right = growing.divide(root, 0, 3.0)
    deep = growing.divide(left, 1, 1.0)
    for node, value in ((right, 1.0), (deep[0], 2.0), (deep[1], 4.0), (growing.root(1), 8.0)):
        growing.settle(node, value)
    mask = np.zeros((1, 256), bool)
    mask[0, 1] = True  # bin 1 goes left
    one = Splits.new(np.array([0]), mask, [5])
    return growing.done(), {"bank": one, "shop": one}


def outputs(forest: Forest, splits: dict[str, Splits], codes: dict[str, np.ndarray]) -> np.ndarray:
    rows = next(iter(codes.values())).shape[1]
    walk, found = Walk(forest, rows), np.zeros((rows, 2))
    while waiting := walk.waiting():
        walk.go(
            {
                owner: splits[forest.parties[owner]].go_left(split, codes[forest.parties[owner]], row)
                for owner, (split, row) in waiting.items()
            }
        )
    walk.add_to(found)
    return found


def test_rows_reach_their_leaves() -> None:
    forest, splits = grown()
    codes = {"bank": np.array([[1, 1, 2, 0]], np.uint8), "shop": np.array([[1, 2, 1, 1]], np.uint8)}
    assert outputs(forest, splits, codes).tolist() == [[2, 8], [4, 8], [1, 8], [1, 8]]
    assert outputs(forest, splits, {p: c[:, :0] for p, c in codes.items()}).shape == (0, 2)


def test_the_first_trees_are_a_forest() -> None:
    forest, splits = grown()
    one = forest.first(1)
    assert (
        len(one) == 1
        and one.splits("bank") == one.splits("shop") == 1
        and forest.first(0).splits("bank") == 0
    )
    codes = {"bank": np.array([[2]], np.uint8), "shop": np.array([[1]], np.uint8)}
    assert outputs(one, splits, codes).tolist() == [[1, 0]]
    assert Growing(one).done().arrays().keys() == one.arrays().keys()


def test_arrays_hold_everything() -> None:
    forest, splits = grown()
    again = Forest.of(forest.parties, forest.arrays())
    assert all(
        np.array_equal(a, b) for a, b in zip(forest.arrays().values(), again.arrays().values(), strict=True)
    )
    for one in (splits["bank"], Splits.empty()):
        back = Splits.of(one.arrays())
        assert np.array_equal(back.left, one.left) and np.array_equal(back.column, one.column)
        assert back.rows.tolist() == one.rows.tolist()


def test_parties_may_be_listed_in_another_order() -> None:
    forest, splits = grown()
    turned = forest.among(("shop", "bank"))
    codes = {"bank": np.array([[1, 1, 2, 0]], np.uint8), "shop": np.array([[1, 2, 1, 1]], np.uint8)}
    assert turned.parties == ("shop", "bank") and turned.owner.dtype == forest.owner.dtype
    assert np.array_equal(outputs(turned, splits, codes), outputs(forest, splits, codes))
