"""The tables that `vfl compare` can take: two that come along, and any CSV or Parquet file.

Takes part: nobody yet. One table is read here and dealt out to parties later, so this is for
experiments: between real organisations the data is divided already, and nobody reads it all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from protocols.compare.task import Metric, Task
from protocols.data import partition, tables
from protocols.data.sources import SUFFIXES, read_file
from protocols.data.tables import Kind
from protocols.errors import ConfigError, DataError, marked, nearest
from protocols.federation import check_name
from protocols.learning.training import Settings
from protocols.psi.ids import canonical

MOST_CLASSES = 20  # whole numbers with more distinct values than this are taken for a quantity
LEAST_ROWS_PER_CLASS = 5  # so that every class is among training, validation and test rows

Columns = str | Mapping[str, str | Sequence[str]]


def load(
    data: str = "breast_cancer",
    *,
    id: str | None = None,
    target: str | None = None,
    parties: Columns | None = None,
    label_party: str | None = None,
    clients: int = 5,
    kind: Kind | None = None,
) -> Task:
    """A built-in table by name, or a file by path, as a task.

    `parties`: who holds which columns, as in `partition.columns`. `target`: a column, or `party.column`.
    The label is at `label_party`, by default the first party. Without `id` the row number serves. Without
    `kind` the target's values decide it, and a note says so where whole numbers could be meant either way.
    ConfigError or DataError, in one line, for anything that cannot be meant.
    """
    if data in BUILT_IN:
        table, known_target, known_parties = BUILT_IN[data]()
        kind = kind or (None if target else "classification")
        target, parties, name = target or known_target, parties or known_parties, data
    else:
        table, name = read(data), Path(data).stem
    if not target or not parties:
        missing = "--target" if not target else "--parties"
        raise ConfigError(
            f"{data}: {missing} is needed for a file, as in: "
            '--target default --parties "bank=income,age shop=*"'
        )
    return from_frame(
        table,
        name,
        id=id,
        target=target,
        parties=parties,
        label_party=label_party,
        clients=clients,
        kind=kind,
    )


def from_frame(
    table: pd.DataFrame,
    name: str,
    *,
    id: str | None = None,
    target: str,
    parties: Columns,
    label_party: str | None = None,
    clients: int = 5,
    kind: Kind | None = None,
) -> Task:
    """A task from a table in memory; arguments as in `load`."""
    if clients < 1:
        raise ConfigError(f"clients={clients} should be at least 1")
    try:
        table = tables.own_table(table)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    if not len(table):
        raise DataError(f"{name}: the table has 0 rows")
    table = table.set_axis(table.columns.astype(str), axis=1)
    notes = []
    if id is None:
        id, notes = _free_name("row", table), ["No id column was given: the row number is the id."]
        table = table.assign(**{id: range(len(table))})
    target, said_party = _target(table, target)
    _check_ids(tables.column(table, id, "id"))
    if id == target:
        raise ConfigError(f"{id!r} is both the id and the target")
    columns = partition.columns(list(table.columns), parties, [id, target])
    owner = _label_party(columns, label_party, said_party)
    for party, names in columns.items():
        check_name(party)
        with marked(party, ""):
            tables.features(table, names)
    if isinstance(table[target].dtype, pd.CategoricalDtype):
        table = table.assign(**{target: table[target].cat.remove_unused_categories()})
    if kind is None:
        kind = kind_of(table[target])
        notes += _doubt(table[target], kind)
    _check_target(table[target], kind, clients)
    ordered = [id, target, *(n for names in columns.values() for n in names)]
    return Task(
        name=name,
        table=table[ordered],
        id=id,
        target=target,
        columns=columns,
        label_party=owner,
        settings=Settings(kind=kind),
        metric=_metric(table[target], kind),
        clients=clients,
        notes=tuple(notes),
    )


def _breast_cancer() -> tuple[pd.DataFrame, str, Columns]:
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer(as_frame=True).frame.rename(columns={"target": "benign"})
    return table, "benign", {"clinic": "* error", "lab": "mean *", "registry": "worst *"}


def _digits() -> tuple[pd.DataFrame, str, Columns]:
    from sklearn.datasets import load_digits

    table = load_digits(as_frame=True).frame.rename(columns={"target": "digit"})
    return table, "digit", {"left": "pixel_*_[0-3]", "right": "pixel_*_[4-7]"}


BUILT_IN: dict[str, Callable[[], tuple[pd.DataFrame, str, Columns]]] = {
    "breast_cancer": _breast_cancer,
    "digits": _digits,
}


def read(data: str) -> pd.DataFrame:
    """The table in a file."""
    path = Path(data)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"--data {data}: expected {', '.join(BUILT_IN)}, or a file ending in {' or '.join(SUFFIXES)}"
            f"{nearest(data, BUILT_IN)}"
        )
    return read_file(path)


def _target(table: pd.DataFrame, target: str) -> tuple[str, str | None]:
    """The target's column, and its party where it was given as `party.column`."""
    party, _, column = target.partition(".")
    if target not in table.columns and column in table.columns:
        return column, party
    if target not in table.columns:
        close = nearest(target, table.columns) or nearest(column, table.columns)
        raise DataError(f"no target column {target!r} in a table of {table.shape[1]} columns{close}")
    return target, None


def _label_party(columns: Mapping[str, list[str]], asked: str | None, said: str | None) -> str:
    if asked and said and asked != said:
        raise ConfigError(f"the target is said to be at {said!r} and --label-party is {asked!r}; which one?")
    if len(columns) < 2:
        raise ConfigError(f"parties: only {next(iter(columns))!r} is given; columns need two parties or more")
    owner = asked or said or next(iter(columns))
    if owner not in columns:
        raise ConfigError(
            f"no party {owner!r} to hold the label; parties are {', '.join(columns)}{nearest(owner, columns)}"
        )
    return owner


def _check_ids(ids: pd.Series) -> None:
    if ids.isna().any():
        raise DataError(f"id column {ids.name!r}: {int(ids.isna().sum())} of {len(ids)} ids are missing")
    twice = int(ids.duplicated(keep=False).sum())
    if twice:
        raise DataError(
            f"id column {ids.name!r}: {twice} of {len(ids)} ids are duplicated; keep one row for each id"
        )
    try:
        canonical(ids)
    except DataError as error:
        raise DataError(f"id column {ids.name!r}: {error}") from None


def kind_of(target: pd.Series) -> Kind:
    few_whole = target.nunique() <= MOST_CLASSES and _whole(target)
    return "classification" if few_whole or not _numeric(target) else "regression"


def _metric(target: pd.Series, kind: Kind) -> Metric:
    if kind == "regression":
        return "r2"
    return "auc" if target.nunique() == 2 else "accuracy"


def _doubt(target: pd.Series, kind: Kind) -> list[str]:
    """What to say where whole numbers decided the kind; two of them are two classes either way."""
    distinct = target.nunique()
    if distinct <= 2 or not _whole(target):
        return []
    taken, other = ("classes", "regression") if kind == "classification" else ("a quantity", "classification")
    return [
        f"The {distinct} distinct whole numbers of the target are taken for {taken}; else --kind {other}."
    ]


def _numeric(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _whole(values: pd.Series) -> bool:
    return _numeric(values) and bool((values.dropna() % 1 == 0).all())


def _check_target(target: pd.Series, kind: Kind, clients: int) -> None:
    # Row-clients predict the test rows where they lie, so each needs one of those too.
    tested = math.floor(Task.test_size * len(target))
    if len(target) < 2 * LEAST_ROWS_PER_CLASS + clients or tested < clients:
        raise DataError(
            f"{len(target)} rows are too few for {clients} clients, validation and a test: each client needs "
            f"one of the {tested} test rows; add rows, or use fewer clients"
        )
    if kind == "regression":
        tables.numbers(target)
        return
    tables.check_classes(tables.labels(target))
    fewest = int(target.value_counts().min())
    if fewest < LEAST_ROWS_PER_CLASS:
        raise DataError(
            f"target {target.name!r} has {target.nunique()} classes, one of them with {fewest} rows; "
            f"expected at least {LEAST_ROWS_PER_CLASS} of each, to train, validate and test on"
        )


def _free_name(name: str, table: pd.DataFrame) -> str:
    while name in table.columns:
        name += "_"
    return name
