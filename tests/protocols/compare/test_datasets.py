"""Laws of the tables: what can be meant is read, everything else is one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from protocols.compare.datasets import from_frame, load
from protocols.compare.task import Task
from protocols.data.tables import Kind
from protocols.errors import ConfigError, DataError, VflError
from tests.support import tiny


def task(
    frame: pd.DataFrame,
    target: str = "default",
    parties: str = "bank=a,b,c telco=*",
    id: str | None = "id",
    label_party: str | None = None,
    clients: int = 3,
    kind: Kind | None = None,
) -> Task:
    return from_frame(
        frame,
        "tiny",
        id=id,
        target=target,
        parties=parties,
        label_party=label_party,
        clients=clients,
        kind=kind,
    )


def classes() -> pd.DataFrame:
    return tiny.table().drop(columns="amount")


@pytest.mark.parametrize(
    ("name", "owners", "label", "metric", "classes"),
    [
        ("breast_cancer", {"clinic": 10, "lab": 10, "registry": 10}, "clinic", "auc", 2),
        ("digits", {"left": 32, "right": 32}, "left", "accuracy", 10),
    ],
)
def test_the_built_in_tables(
    name: str, owners: dict[str, int], label: str, metric: str, classes: int
) -> None:
    got = load(name)
    assert {party: len(columns) for party, columns in got.columns.items()} == owners
    assert (got.label_party, got.metric, got.outputs) == (label, metric, classes)
    assert set(got.table.columns) == {got.id, got.target, *got.features}
    assert "row number is the id" in got.notes[0]


def test_each_organisation_of_the_demo_holds_one_statistic_of_the_measurements() -> None:
    held = {"clinic": "{} error", "lab": "mean {}", "registry": "worst {}"}
    quantities = [name.removeprefix("mean ") for name in load().columns["lab"]]
    assert load().columns == {p: [form.format(q) for q in quantities] for p, form in held.items()}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_gives_the_table_that_was_written(tmp_path: Path, suffix: str) -> None:
    frame, path = classes(), tmp_path / f"loans.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    got = load(str(path), id="id", target="bank.default", parties="telco=d,e,f bank=*")
    assert (got.name, got.target, got.label_party) == ("loans", "default", "bank")
    assert got.columns == {"telco": ["d", "e", "f"], "bank": ["a", "b", "c"]}
    assert not got.notes
    pd.testing.assert_frame_equal(got.table[frame.columns], frame)


def test_the_label_is_at_the_first_party_unless_said() -> None:
    assert task(classes()).label_party == "bank"
    assert task(classes(), label_party="telco").label_party == "telco"
    assert task(classes(), target="telco.default").label_party == "telco"


def test_a_targets_own_dots_are_kept_and_a_part_of_its_name_finds_it() -> None:
    frame = classes().rename(columns={"default": "default.payment.next.month"})
    for said in ("default.payment.next.month", "bank.default.payment.next.month"):
        got = task(frame, target=said)
        assert (got.target, got.label_party) == ("default.payment.next.month", "bank")
    for said in (
        "default",
        "bank.default",
        "next.month",
        "bank.payment.next",
        "bank.Default.payment.next.moth",
    ):
        with pytest.raises(DataError, match="^no target column .* did you mean 'default.payment.next.month'"):
            task(frame, target=said)


@pytest.mark.parametrize(
    ("values", "kind", "metric"),
    [
        (np.arange(80) % 2, "classification", "auc"),
        (np.arange(80) % 3, "classification", "accuracy"),
        (np.array(["no", "yes"] * 40), "classification", "auc"),
        (np.array([True, False] * 40), "classification", "auc"),
        (np.arange(80) % 8 / 4, "regression", "r2"),
        (np.arange(80), "regression", "r2"),
    ],
)
def test_the_kind_follows_the_target(values: np.ndarray, kind: str, metric: str) -> None:
    got = task(classes().assign(default=values))
    assert (got.settings.kind, got.metric) == (kind, metric)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.arange(80) % 20, "20 distinct whole numbers of the target are taken for classes"),
        (np.arange(80) % 21, "21 distinct whole numbers of the target are taken for a quantity"),
        (np.arange(80) % 2, None),  # two values are two classes whichever way they are read
        (np.arange(80) % 3 / 2, None),
        (np.array(["a", "b", "c", "d"] * 20), None),
    ],
)
def test_a_kind_decided_on_whole_numbers_is_told(values: np.ndarray, said: str | None) -> None:
    frame = pd.concat([classes()] * 3, ignore_index=True).assign(id=range(240))
    got = task(frame.assign(default=np.tile(values, 3)))
    assert len(got.notes) == (said is not None)
    if said is not None:
        assert said in got.notes[0] and "--kind" in got.notes[0]


def test_a_kind_that_is_asked_for_is_taken_without_a_note() -> None:
    digits = load("digits", kind="regression")
    assert (digits.settings.kind, digits.metric, len(digits.notes)) == ("regression", "r2", 1)
    frame = pd.concat([classes()] * 3, ignore_index=True).assign(id=range(240))
    many = task(frame.assign(default=np.arange(240) % 30), kind="classification")
    assert (many.settings.kind, many.metric, many.notes) == ("classification", "accuracy", ())
    with pytest.raises(DataError, match="not numbers; use a classifier"):
        task(classes().assign(default=["no", "yes"] * 40), kind="regression")


def test_a_category_without_rows_is_no_class() -> None:
    answers = pd.Categorical(["no", "yes"] * 40, categories=["no", "yes", "refused"])
    frame = classes().assign(default=answers)
    got = task(frame)
    assert (got.outputs, got.metric) == (2, "auc")
    assert list(got.table["default"].value_counts()) == [40, 40]
    assert list(frame["default"].cat.categories) == ["no", "yes", "refused"]


def test_a_row_number_never_hides_a_column() -> None:
    got = task(classes().rename(columns={"id": "row"}).assign(row=range(80)), id=None)
    assert got.id == "row_" and "row" in got.features


def test_the_callers_table_stays_as_it_is() -> None:
    frame = classes().rename(columns={"a": 0})
    before = frame.copy()
    got = task(frame, parties="bank=0,b,c telco=*")
    assert "0" in got.features
    pd.testing.assert_frame_equal(frame, before)


def test_a_column_name_given_twice_is_one_clear_error() -> None:
    frame = classes()
    for name in ("id", "default", "a"):
        twice = pd.concat([frame, frame[[name]]], axis=1)
        with pytest.raises(DataError, match=f"tiny: two columns are called '{name}'"):
            task(twice)


BAD_FRAMES: list[tuple[str, pd.DataFrame, str]] = [
    ("0 rows", classes().iloc[:0], "0 rows"),
    ("nan", classes().assign(d=np.nan), "^telco: column 'd' has 80 missing"),
    ("text", classes().assign(e="x"), "^telco: column 'e' is"),
    ("one class", classes().assign(default=1), "1 class"),
    ("rare class", classes().assign(default=[2] + [0, 1] * 39 + [0]), "one of them with 1 rows"),
    ("missing label", classes().assign(default=[np.nan] + [0.0, 1.0] * 39 + [0.0]), "1 of 80 labels"),
    ("ids twice", classes().assign(id=["p0", *classes()["id"][:-1]]), "2 of 80 ids are duplicated"),
    (
        "ids missing",
        classes().assign(id=classes()["id"].where(classes()["id"] != "p0")),
        "1 of 80 ids are missing",
    ),
    ("few rows", classes().iloc[:8], "8 rows are too few"),
    ("float ids", classes().assign(id=np.arange(80) / 2), "^id column 'id': ids should be .*got floats"),
    ("date ids", classes().assign(id=pd.date_range("2020", periods=80)), "^id column 'id': .*got dates"),
]


@pytest.mark.parametrize(("frame", "said"), [b[1:] for b in BAD_FRAMES], ids=[b[0] for b in BAD_FRAMES])
def test_a_bad_table_is_one_clear_error(frame: pd.DataFrame, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        task(frame)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"id": "nr"}, "no id column 'nr'"),
        ({"target": "defualt"}, "no target column 'defualt'.*did you mean 'default'"),
        ({"target": "id"}, "both the id and the target"),
        ({"parties": "bank=a,b,c telco=c,d,e,f"}, "column 'c' is named twice"),
        ({"parties": "bank=a,b telco=d,e,f"}, "no party holds 'c'"),
        ({"parties": "bank=*"}, "only 'bank' is given"),
        ({"parties": "bank=default telco=*"}, "which is the id or the target"),
        ({"label_party": "bnk"}, "no party 'bnk'.*did you mean 'bank'"),
        ({"label_party": "telco", "target": "bank.default"}, "which one"),
        ({"clients": 0}, "clients=0"),
        ({"clients": 80}, "too few for 80 clients"),
        ({"clients": 17}, "80 rows are too few for 17 clients.*16 test rows"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, str], said: str) -> None:
    with pytest.raises(VflError, match=said):
        task(classes(), **options)  # type: ignore[arg-type]


def test_every_client_gets_a_test_row() -> None:
    fewest = task(classes().iloc[:25], clients=5)
    for seed in range(3):
        for rows in fewest.split(seed):
            assert len(fewest.row_clients(rows, seed)) == 5


def test_a_column_name_with_a_blank_or_comma_is_quoted_or_matched_by_a_pattern() -> None:
    frame = classes().rename(columns={"a": "mean a", "b": "b, each"})
    for parties in ("bank=mean a,c telco=*", "bank=b, each telco=*"):
        with pytest.raises(
            ConfigError, match=r"[?.] Write a name that holds a blank or comma in double quotes$"
        ):
            task(frame, parties=parties)
    for parties in ('bank="mean a","b, each",c telco=*', "bank=mean?a,b??each,c telco=*"):
        assert task(frame, parties=parties).columns["bank"] == ["mean a", "b, each", "c"]
    with pytest.raises(ConfigError, match="matches no column$"):
        task(classes(), parties="bank=zzz telco=*")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "no.parquet").write_text("a,b\n1,2\n")
    for name, said in [
        ("absent.csv", "no such file"),
        ("table.xlsx", "expected breast_cancer, digits, or a file"),
        ("empty.csv", "empty"),
        ("no.parquet", "cannot be read as PARQUET"),
    ]:
        with pytest.raises(VflError, match=said):
            load(str(tmp_path / name), target="y", parties="a=* b=c")
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load("digit")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="--parties is needed"):
        load(str(tmp_path / "t.csv"), target="a")
