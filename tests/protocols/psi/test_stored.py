"""Ids on disk are the ids that are in memory elsewhere, and leave nothing behind."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols.errors import ConfigError, DataError
from protocols.psi import id_columns, risk, stored
from protocols.psi.id_columns import IdColumn, InFile, InTable
from protocols.psi.ids import Duplicates, canonical
from protocols.psi.risk import guessable
from protocols.psi.stored import StoredIds, store


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_columns, "CHUNK", 7)
    monkeypatch.setattr(stored, "PART", 5)


def in_table(values: Sequence[Any], **more: Any) -> IdColumn:
    return InTable(pd.DataFrame({"id": pd.Series(values, **more)}), ["id"])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.sampled_from("aAäé \0b"), min_size=1, max_size=3), max_size=40),
    st.sampled_from(["first", "many"]),
    st.sampled_from([(), ("casefold",)]),
    st.data(),
)
def test_they_are_those_in_memory(
    tmp_path: Path, values: list[str], duplicates: Duplicates, rules: Any, data: Any
) -> None:
    column = in_table(values, dtype="str")
    here = canonical(pd.Series(values, dtype="str"), duplicates=duplicates, normalise=rules)
    there = store(column, tmp_path, duplicates=duplicates, normalise=rules)
    assert (there.tag, len(there), there.repeats, there.many) == (
        *(here.tag, len(here), here.repeats),
        here.many,
    )
    loaded = there.loaded()
    assert loaded.values.equals(here.values)
    np.testing.assert_array_equal(loaded.rows, here.rows)
    chosen = np.array(data.draw(st.lists(st.sampled_from(here.rows.tolist()), unique=True)) if values else [])
    rows = np.sort(chosen).astype(np.int64)
    known = dict(zip(here.rows.tolist(), here.values.to_pylist(), strict=True))
    np.testing.assert_array_equal(there.in_order(there.mask(rows)), sorted(rows, key=known.__getitem__))
    assert sorted(there.at(rows)) == sorted(here.at(rows)) and len(there.at(rows)) == len(rows)
    np.testing.assert_array_equal(there.counts(rows), here.counts(rows))
    np.testing.assert_array_equal(there.every(rows, there.counts(rows)), here.every(rows, here.counts(rows)))


def test_integers_and_ids_of_several_columns(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": range(30), "b": [f"x{i % 3}" for i in range(30)]})
    for names in (["a"], ["a", "b"]):
        there, here = store(InTable(table, names), tmp_path), canonical(table[names])
        assert (there.tag, len(there)) == (here.tag, 30) and there.loaded().values.equals(here.values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["a"] * 3 + [f"b{i}" for i in range(20)], "2 of 23 ids are duplicated"),
        ([None, *"abcdefgh", None], "2 of 10 ids are missing"),
        ([*range(9), *"abc"], "ids should be integers or text, got mixed"),
        ([*range(7), *"abcdefg"], "integers in some rows and text in others"),
        ([*range(7), *[None] * 7], "7 of 14 ids are missing"),
        ([1.5] * 9, "got floats"),
    ],
)
def test_what_is_wrong_with_them_is_said_as_in_memory(tmp_path: Path, values: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        store(in_table(values, dtype=object), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_id_that_is_empty_after_a_rule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 of 12 ids are empty after normalise="):
        store(in_table([" ", *"abcdefghij", ""]), tmp_path, normalise="strip")


def test_they_are_for_their_owner_only_and_end_with_their_use(tmp_path: Path) -> None:
    ids = store(in_table(range(40)), tmp_path / "scratch")
    (folder,) = (tmp_path / "scratch").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "40 ids" in repr(ids) and "39" not in repr(ids)
    del ids
    assert not folder.exists()


def test_a_sample_tells_how_well_they_can_be_guessed(tmp_path: Path) -> None:
    ids = store(in_table([f"{i:04d}" for i in range(60)]), tmp_path)
    assert isinstance(ids, StoredIds) and 5 < guessable(ids).bits < 20


def test_a_sample_of_a_sorted_table_is_of_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ids of the first rows begin with the same digits, and so would look easier to guess."""
    monkeypatch.setattr(stored, "PART", 3000)
    monkeypatch.setattr(risk, "SAMPLE", 300)
    names = pd.Series([f"{i:06d}" for i in range(0, 1_000_000, 111)])
    here, there = guessable(canonical(names)), guessable(store(in_table(names.tolist()), tmp_path))
    assert there.bits == pytest.approx(here.bits, abs=0.5) and here.bits > np.log2(10**6) - 0.1


def test_no_id_has_a_sample_too(tmp_path: Path) -> None:
    assert not len(store(in_table([], dtype="str"), tmp_path).sample(10))


def test_a_file_is_read_as_the_table_in_it_is(tmp_path: Path) -> None:
    table = pd.DataFrame({"other": range(30), "id": [f"é{i}" for i in range(30)]})
    table.to_parquet(tmp_path / "a.parquet", row_group_size=11)
    file, held = InFile(tmp_path / "a.parquet", ["id"]), InTable(table, ["id"])
    assert file.rows == held.rows == 30 and file.fingerprint == held.fingerprint
    assert canonical(file.whole()).values.equals(canonical(held.whole()).values)
    assert store(file, tmp_path).loaded().values.equals(canonical(table["id"]).values)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_fingerprint_is_of_the_ids_that_were_read(tmp_path: Path, on_disk: bool) -> None:
    """A file that changes between two readings would pass for the one whose rows were aligned."""
    before, after = pd.DataFrame({"id": range(30)}), pd.DataFrame({"id": range(30)[::-1]})
    before.to_parquet(tmp_path / "a.parquet")
    file = InFile(tmp_path / "a.parquet", ["id"])
    ids = store(file, tmp_path).loaded() if on_disk else canonical(file.whole())
    after.to_parquet(tmp_path / "a.parquet")
    assert ids.values.equals(canonical(before["id"]).values)
    assert file.fingerprint == InTable(before, ["id"]).fingerprint


@pytest.mark.parametrize("kind", ["int64", "str"])
def test_a_file_without_rows_keeps_the_type_of_its_ids(tmp_path: Path, kind: str) -> None:
    pd.DataFrame({"id": pd.Series([], dtype=kind)}).to_parquet(tmp_path / "a.parquet")
    assert canonical(InFile(tmp_path / "a.parquet", ["id"]).whole()).tag == kind.removesuffix("64")


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_a_fingerprint_is_of_ids_and_their_order(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(id_columns, "CHUNK", chunk)
    one = in_table(["ab", "c", None, ""]).fingerprint
    assert one == in_table(["ab", "c", None, ""], dtype="string[pyarrow]").fingerprint
    others = [["c", "ab", None, ""], ["a", "bc", None, ""], ["ab", "c", "", None], ["ab", "c", None]]
    assert one not in {in_table(other).fingerprint for other in others}


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [("idd", DataError, "no id column 'idd' in a table of 1 columns; did you mean 'id'"), ("id", None, "")],
)
def test_a_column_that_is_not_there_is_said(
    tmp_path: Path, name: str, kind: type[Exception] | None, said: str
) -> None:
    pd.DataFrame({"id": [1]}).to_parquet(tmp_path / "a.parquet")
    if kind is None:
        assert InFile(tmp_path / "a.parquet", [name]).rows == 1
        with pytest.raises(ConfigError, match="no such file"):
            InFile(tmp_path / "b.parquet", [name])
        return
    with pytest.raises(kind, match=said):
        InFile(tmp_path / "a.parquet", [name])


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="cannot be read as PARQUET"):
        InFile(tmp_path / "a.parquet", ["id"])


def test_a_dictionary_in_a_file_is_text(tmp_path: Path) -> None:
    pd.DataFrame({"id": pd.Categorical(["b", "a", "c"])}).to_parquet(tmp_path / "a.parquet")
    ids = store(InFile(tmp_path / "a.parquet", ["id"]), tmp_path)
    assert ids.tag == "str" and ids.loaded().values.to_pylist() == [b"b", b"a", b"c"]
    assert pa.types.is_large_binary(ids.loaded().values.type)
