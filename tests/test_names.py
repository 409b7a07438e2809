"""A table with names that no method can carry is refused at every door, before it is read for features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from horizontal import FedClassifier, FedRegressor
from protocols.cli.main import app as main_app
from protocols.compare.datasets import from_frame, load
from protocols.data.sources import TableSource, read_file, read_table, usable_columns
from protocols.errors import ConfigError, DataError
from protocols.federation import Federation
from split import SplitClassifier, SplitRegressor
from vfl import (
    VerticalGradientBoostingClassifier,
    VerticalGradientBoostingRegressor,
    VerticalLinearRegression,
    VerticalLogisticRegression,
    VerticalNetClassifier,
    VerticalNetRegressor,
    VerticalPoissonRegressor,
    align,
)
from vfl.command import app as psi_app

VERTICAL: list[type[Any]] = [
    VerticalGradientBoostingClassifier,
    VerticalGradientBoostingRegressor,
    VerticalLinearRegression,
    VerticalLogisticRegression,
    VerticalNetClassifier,
    VerticalNetRegressor,
    VerticalPoissonRegressor,
]
ROWS: list[type[Any]] = [FedClassifier, FedRegressor, SplitClassifier, SplitRegressor]


def grouped(rows: int = 40) -> pd.DataFrame:
    """As `groupby().agg().reset_index()` gives one: with labels that are pure noise."""
    rng = np.random.default_rng(0)
    raw = pd.DataFrame({"id": np.arange(rows).repeat(2), "z": rng.normal(size=2 * rows)})
    table = raw.groupby("id").agg({"z": ["mean", "max"]}).reset_index()
    table[("y", "")] = rng.integers(0, 2, rows)
    return table


def shop(rows: int = 40) -> pd.DataFrame:
    return pd.DataFrame({"id": np.arange(rows), "x": np.random.default_rng(1).normal(size=rows)})


@pytest.mark.parametrize("kind", VERTICAL)
def test_levels_of_names_make_no_feature_of_the_label_in_vertical_models(kind: type[Any]) -> None:
    with pytest.raises(DataError, match=r"^bank: the columns have 2 levels of names"):
        kind().fit({"bank": grouped(), "shop": shop()}, "bank.y", "id")


@pytest.mark.parametrize("kind", ROWS)
def test_nor_in_models_of_row_clients(kind: type[Any]) -> None:
    tables = {"north": grouped(), "south": grouped()}
    with pytest.raises(DataError, match=r"^north: the columns have 2 levels of names"):
        kind().fit(tables, target="y", id="id")


DOORS: dict[str, Callable[[pd.DataFrame], object]] = {
    "Federation": lambda table: Federation({"bank": table, "shop": shop()}),
    "align": lambda table: align({"bank": table, "shop": shop()}, id="id", label_party="bank"),
    "a table to compare on": lambda table: from_frame(
        table, "it", id="id", target="y", parties={"bank": "*", "shop": []}
    ),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["Unnamed: 0", "", pd.Timestamp("2024-01-01"), float("nan"), ("z", "max")])
def test_every_door_refuses_a_name_that_is_none(door: str, name: Any) -> None:
    table = shop().assign(y=1)
    table.columns = pd.Index(["id", name, "y"], dtype=object)
    with pytest.raises(DataError, match="column 2 of 3"):
        DOORS[door](table)


@pytest.fixture(params=["index", "trailing"])
def nameless(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file as `to_csv()` writes it with its index, or one in which lines end with a comma."""
    place = tmp_path / "bank.csv"
    table = shop().assign(y=[0, 1] * 20)
    table.to_csv(place, index=request.param == "index")
    if request.param == "trailing":
        place.write_text("".join(f"{line},\n" for line in place.read_text().splitlines()))
    return place


def test_a_column_without_a_name_is_one_error_wherever_a_file_is_read(nameless: Path) -> None:
    source = TableSource(path=nameless, id="id")
    reads: list[Callable[[], object]] = [
        lambda: read_table(source, Path()),
        lambda: read_table(source, Path(), []),
        lambda: usable_columns(source, Path()),
        lambda: read_file(nameless, ["id"]),
        lambda: load(str(nameless), id="id", target="y", parties="bank=x shop=*"),
    ]
    for read in reads:
        with pytest.raises(DataError, match=r"bank\.csv: column \d of 4 has no name, as where to_csv"):
            read()


def test_and_in_the_commands(nameless: Path, tmp_path: Path) -> None:
    shop().to_csv(tmp_path / "shop.csv", index=False)
    psi = ["--table", f"bank={nameless}", "--table", f"shop={tmp_path / 'shop.csv'}", "--id", "id"]
    comparison = ["compare", "--data", str(nameless), "--id", "id", "--target", "y"]
    comparison += ["--parties", "bank=x shop=*"]
    for app, command in ((psi_app, psi), (main_app, comparison)):
        result = CliRunner().invoke(app, command)
        assert result.exit_code != 0 and "has no name" in " ".join(result.output.split()), result.output
        assert "Traceback" not in result.output


def test_rows_longer_than_the_header_do_not_shift_columns(tmp_path: Path) -> None:
    """pandas takes the first column for an index then, and the others get each other's names."""
    place = tmp_path / "bank.csv"
    lines = ["id,x,y", *(f"{i},{i / 3},{i % 2}," for i in range(40))]
    place.write_text("\n".join(lines))
    with pytest.raises(DataError, match="cannot be read as CSV"):
        load(str(place), id="id", target="y", parties="bank=x shop=*")


@pytest.mark.parametrize("kind", ROWS)
def test_a_column_is_not_both_id_and_target(kind: type[Any]) -> None:
    with pytest.raises(ConfigError, match=r"^north/fit: column 'y' is both id and target"):
        kind().fit({"north": shop().assign(y=1), "south": shop().assign(y=1)}, target="y", id="y")
