"""Rows in another order by way of a disk are those that pandas takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from protocols.data import reorder
from protocols.data.reorder import write_rows
from protocols.errors import ConfigError, DataError


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    monkeypatch.setattr(reorder, "CHUNK", 300)
    monkeypatch.setattr(reorder, "PIECE", 1)  # which makes pieces of 1024 rows, the least
    rng = np.random.default_rng(1)
    known = pd.DataFrame(
        {
            "id": [f"c{i}" for i in range(5000)],
            "amount": rng.normal(size=5000),
            "kind": pd.Categorical(rng.choice(["a", "b"], 5000)),
            "when": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 999, 5000), unit="D"),
            "gaps": pd.array(rng.integers(0, 9, 5000), dtype="Int64").copy(),
        }
    )
    known.loc[::7, "gaps"] = pd.NA
    known["lists"] = [[i] * (i % 3) for i in range(5000)]
    known.to_parquet(tmp_path / "table.parquet", row_group_size=700)
    return pq.read_table(tmp_path / "table.parquet")


@pytest.mark.parametrize("many", [0, 1, 4000, 9000])
def test_rows_are_those_that_arrow_takes(table: pa.Table, tmp_path: Path, many: int) -> None:
    rows = np.random.default_rng(many).integers(0, 5000, many)
    write_rows(tmp_path / "table.parquet", rows, tmp_path / "out.parquet")
    got = pq.read_table(tmp_path / "out.parquet")
    assert got.to_pylist() == table.take(pa.array(rows)).to_pylist()
    assert got.schema.names == table.schema.names
    assert not any(p.is_dir() for p in tmp_path.iterdir())


def test_columns_may_be_chosen(table: pa.Table, tmp_path: Path) -> None:
    rows, names = np.array([3, 1, 2, 1]), ["when", "id"]
    write_rows(tmp_path / "table.parquet", rows, tmp_path / "out.parquet", columns=names)
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == table.select(names).take(rows).to_pylist()


def test_nothing_partial_is_left(table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.parquet").write_bytes(b"before")
    writes = []

    def full(*_: object) -> None:
        writes.append(1)
        if len(writes) > 2:
            raise OSError(28, "No space left on device")
        real(*_)

    real, before = pq.ParquetWriter.write_table, sorted(tmp_path.iterdir())
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(DataError, match="cannot write .*out.parquet: No space left on device"):
        write_rows(tmp_path / "table.parquet", np.arange(5000), tmp_path / "out.parquet")
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "out.parquet").read_bytes() == b"before"


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        write_rows(tmp_path / "none.parquet", np.arange(3), tmp_path / "out.parquet")


@pytest.mark.parametrize("rows", [[5000], [-1], [0, 9999]])
def test_rows_that_are_not_there_are_not_left_out(table: pa.Table, tmp_path: Path, rows: list[int]) -> None:
    with pytest.raises(DataError, match=r"table.parquet has 5000 rows, and row \d+ is asked for; was it"):
        write_rows(tmp_path / "table.parquet", np.array(rows), tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]


def test_a_piece_is_as_large_as_it_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that repeats is short in a Parquet file, however long."""
    monkeypatch.setattr(reorder, "PIECE", 1 << 20)
    many = 20_000
    table = pd.DataFrame({"id": range(many), "text": [f"{i % 3}" * 500 for i in range(many)]})
    table.to_parquet(tmp_path / "table.parquet", row_group_size=5000)
    rows = np.random.default_rng(2).permutation(many)
    written, real = [], pq.ParquetWriter.write_table

    def write(writer: pq.ParquetWriter, piece: pa.Table) -> None:
        written.append(piece.nbytes)
        real(writer, piece)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write)
    write_rows(tmp_path / "table.parquet", rows, tmp_path / "out.parquet")
    assert max(written) < 1.2 * (1 << 20)
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "out.parquet"), table.iloc[rows].reset_index(drop=True)
    )
