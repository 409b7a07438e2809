"""Laws of the partitions: every row and every column is at exactly one place, and skew goes with alpha."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.data.partition import by_column, columns, dirichlet, iid
from protocols.errors import ConfigError, DataError

TABLE = ["ID", "LIMIT_BAL", "SEX", "PAY_1", "PAY_2", "AGE", "label"]
EXCLUDE = ("ID", "label")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def is_partition(dealt: list[np.ndarray], n: int) -> bool:
    whole = np.concatenate(dealt)
    return (
        all(rows.dtype == np.int64 and bool((np.diff(rows) > 0).all()) for rows in dealt)
        and len(whole) == n
        and bool((np.sort(whole) == np.arange(n)).all())
    )


def skew(dealt: list[np.ndarray], labels: np.ndarray) -> float:
    """Mean total-variation distance between a client's class mix and the table's."""
    pooled = np.bincount(labels) / len(labels)
    mixes = [np.bincount(labels[rows], minlength=len(pooled)) / len(rows) for rows in dealt]
    return float(np.mean([np.abs(mix - pooled).sum() / 2 for mix in mixes]))


@given(clients=st.integers(1, 20), more=st.integers(0, 200), seed=st.integers(0, 2**32))
def test_iid_deals_every_row_once_and_evenly(clients: int, more: int, seed: int) -> None:
    n = clients + more
    dealt = iid(n, clients, rng(seed))
    assert len(dealt) == clients
    assert is_partition(dealt, n)
    sizes = [len(rows) for rows in dealt]
    assert max(sizes) - min(sizes) <= 1


def test_iid_is_random_and_repeatable() -> None:
    first, same, other = iid(100, 5, rng(1)), iid(100, 5, rng(1)), iid(100, 5, rng(2))
    assert all((a == b).all() for a, b in zip(first, same, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    assert skew(iid(10_000, 5, rng()), np.arange(10_000) // 5_000) < 0.05


@given(
    labels=st.lists(st.sampled_from(["a", "b", "c"]), min_size=40, max_size=120),
    clients=st.integers(1, 4),
    min_rows=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_dirichlet_deals_every_row_once_and_enough_to_each(
    labels: list[str], clients: int, min_rows: int, seed: int
) -> None:
    dealt = dirichlet(np.array(labels), clients, 1.0, rng(seed), min_rows)
    assert len(dealt) == clients
    assert is_partition(dealt, len(labels))
    assert min(len(rows) for rows in dealt) >= min_rows


def test_dirichlet_skew_falls_with_alpha() -> None:
    labels = np.repeat([0, 1, 2], 1000)
    by_alpha = [skew(dirichlet(labels, 5, alpha, rng(3)), labels) for alpha in (0.05, 1.0, 1000.0)]
    assert by_alpha == sorted(by_alpha, reverse=True)
    assert by_alpha[0] > 0.4
    assert by_alpha[2] < 0.05


def test_dirichlet_takes_a_series_by_position_and_any_dtype() -> None:
    labels = pd.Series(["yes", "no"] * 50, index=np.arange(1000, 1100))
    dealt = dirichlet(labels, 3, 5.0, rng())
    assert is_partition(dealt, 100)
    assert all(
        (a == b).all() for a, b in zip(dealt, dirichlet(labels.to_numpy(), 3, 5.0, rng()), strict=True)
    )


def test_dirichlet_gives_up_with_a_reason() -> None:
    with pytest.raises(ConfigError, match=r"1000 draws with alpha=0.001 .* fewer than 30 rows .*raise alpha"):
        dirichlet(np.repeat([0, 1], 75), 5, 0.001, rng(), min_rows=30)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_dirichlet_refuses_alpha(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha should be a positive number"):
        dirichlet(np.array([0, 1]), 2, alpha, rng())


def test_dirichlet_refuses_gaps_and_tables() -> None:
    with pytest.raises(DataError, match="1 of 3 labels are missing"):
        dirichlet(np.array([0.0, np.nan, 1.0]), 2, 1.0, rng())
    with pytest.raises(DataError, match=r"shape \(n,\), got \(4, 2\)"):
        dirichlet(np.zeros((4, 2)), 2, 1.0, rng())


@pytest.mark.parametrize(("n", "clients"), [(0, 1), (4, 5), (3, 0), (3, -1)])
def test_a_client_without_rows_is_refused(n: int, clients: int) -> None:
    with pytest.raises(ConfigError, match=r"not enough for|at least 1"):
        iid(n, clients, rng())
    with pytest.raises(ConfigError, match=r"not enough for|at least 1"):
        dirichlet(np.zeros(n), clients, 1.0, rng())


def test_by_column_is_one_client_per_value() -> None:
    dealt = by_column(pd.Series([10, 2, 10, 2, 2], index=list("vwxyz"), name="branch"))
    assert list(dealt) == ["2", "10"]
    assert is_partition(list(dealt.values()), 5)
    assert {name: rows.tolist() for name, rows in dealt.items()} == {"2": [1, 3, 4], "10": [0, 2]}
    branches = rng().integers(0, 3, size=1000)
    many = by_column(pd.Series(branches))
    assert is_partition(list(many.values()), 1000)
    assert all((branches[rows] == int(name)).all() for name, rows in many.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", None, "b", None], "2 of 4 rows have no value in column 'branch'"),
        ([], "column 'branch' has no rows"),
        ([1, "1"], "read the same as text"),
    ],
)
def test_by_column_refuses(values: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        by_column(pd.Series(values, dtype=object, name="branch"))


def test_columns_are_told_apart_in_the_tables_order() -> None:
    assert columns(TABLE, "bank=SEX,LIMIT_BAL telco=*", EXCLUDE) == {
        "bank": ["LIMIT_BAL", "SEX"],
        "telco": ["PAY_1", "PAY_2", "AGE"],
    }
    assert columns(TABLE, "telco=* bank=PAY_?, SEX", EXCLUDE) == {
        "telco": ["LIMIT_BAL", "AGE"],
        "bank": ["SEX", "PAY_1", "PAY_2"],
    }
    assert columns(TABLE, {"bank": "PAY_*", "telco": ["AGE", "*"]}, EXCLUDE) == {
        "bank": ["PAY_1", "PAY_2"],
        "telco": ["LIMIT_BAL", "SEX", "AGE"],
    }


def test_a_glob_passes_over_what_is_excluded() -> None:
    assert columns(["age", "answer", "income"], "a=a* b=*", ["answer"]) == {"a": ["age"], "b": ["income"]}


def test_names_that_no_string_can_hold_work_in_a_mapping() -> None:
    odd = ["net income, yearly", "a=b", "[x]", "x"]
    spec = {"bank": ["net income, yearly", "a=b"], "shop": ["[x]", "x"]}
    assert columns(odd, spec, ()) == spec
    assert columns(["a=b", "c"], "bank=c,a=b", ()) == {"bank": ["a=b", "c"]}


@given(
    owners=st.lists(st.sampled_from(["ann", "bob", "cy"]), min_size=1, max_size=12),
    rest=st.sampled_from(["ann", "bob", "cy"]),
)
def test_every_column_is_at_one_party(owners: list[str], rest: str) -> None:
    names = [f"c{i}" for i in range(len(owners))]
    spec: dict[str, list[str]] = {}
    for name, owner in zip(names, owners, strict=True):
        spec.setdefault(owner, []).append(name)
    if rest in spec:
        spec[rest] = ["*"]
    held = columns(names, spec, ())
    assert {name: party for party, own in held.items() for name in own} == dict(
        zip(names, owners, strict=True)
    )
    text = " ".join(f"{party}={','.join(patterns)}" for party, patterns in spec.items())
    assert columns(names, text, ()) == held


def test_a_name_in_quotes_may_hold_blanks_commas_and_quotes() -> None:
    odd = ["mean radius", "mean texture", 'size, 3" pipe', "a=b", "n"]
    held = {"clinic": ["mean radius", 'size, 3" pipe'], "lab": ["mean texture", "a=b", "n"]}
    assert columns(odd, 'clinic="mean radius","size, 3"" pipe" lab=*', ()) == held
    assert columns(odd, 'lab="a=b", "mean t*",n  clinic=*', ()) == held


@given(
    names=st.lists(st.text(max_size=6).filter(lambda name: name != "*"), min_size=1, max_size=8, unique=True),
    dealt=st.lists(st.sampled_from(["ann", "bob", "cy"]), min_size=8, max_size=8),
    gap=st.sampled_from([" ", "\n", "  "]),
)
def test_any_names_survive_being_quoted(names: list[str], dealt: list[str], gap: str) -> None:
    held: dict[str, list[str]] = {}
    for name, owner in zip(names, dealt, strict=False):
        held.setdefault(owner, []).append(name)
    quoted = {party: ['"' + name.replace('"', '""') + '"' for name in own] for party, own in held.items()}
    text = gap.join(f"{party}={','.join(own)}" for party, own in quoted.items())
    assert columns(names, text, ()) == held


@given(st.text(alphabet='ab"=,* ', max_size=20))
def test_any_spec_is_read_or_refused(spec: str) -> None:
    with suppress(ConfigError):
        held = columns(["a", "b", "a b", 'a"'], spec, ())
        assert sorted(name for own in held.values() for name in own) == ["a", "a b", 'a"', "b"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            'bank="SEX telco=*',
            """a quote is not closed in 'bank="SEX telco=\\*'; write .* clinic="mean radius",""",
        ),
        ('bank=SEX,"AGE",PAY"_* telco=*', "a quote is not closed"),
        (
            'bank="SEX"AGE telco=*',
            "touches other text in .*; put the whole name in quotes, and a comma or blank",
        ),
        ('bank=my"SEX" telco=*', "touches other text"),
        ('telco=* bank="SEX""', """a quote is not closed in 'bank="SEX""'"""),
        ('bank="" telco=*', "bank's '' matches no column"),
        ("bank=SEX telco=SEX,*", "'SEX' is named twice, by bank's 'SEX' and by telco's 'SEX'"),
        ("bank=PAY_1,PAY_* telco=*", "'PAY_1' is named twice, by bank's 'PAY_1' and by bank's 'PAY_\\*'"),
        ("bank=SEX,AGE telco=PAY_*", "no party holds 'LIMIT_BAL'; add party=\\* for the rest, or drop"),
        ("bank=limit_bal telco=*", "'limit_bal' matches no column; did you mean 'LIMIT_BAL'"),
        ("bank=ZZZZ* telco=*", "'ZZZZ\\*' matches no column$"),
        ("bank=lab* telco=*", "'lab\\*' matches no column$"),
        ("bank=ID telco=*", "bank lists 'ID', which is the id or the target"),
        ("bank=* telco=*", "'\\*' .* is given twice: 'bank', 'telco'"),
        ("bank=*,*", "'\\*' .* is given twice"),
        ("bank= telco=*", "bank has no column"),
        ("bank=LIMIT_BAL,SEX,PAY_*,AGE telco=*", "no column is left for 'telco'"),
        ("bank=SEX bank=AGE telco=*", "'bank' is given twice"),
        ("my.bank=SEX telco=*", "'my.bank' is no party name"),
        ("=SEX telco=*", "'' is no party name"),
        ("SEX telco=*", "'SEX' stands before any party"),
        ("", "none given"),
        ({}, "none given"),
        ({"my bank": "*"}, "'my bank' is no party name"),
        ({"bank": []}, "bank has no column"),
    ],
)
def test_a_bad_spec_says_what_is_wrong(spec: str | dict[str, str | list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        columns(TABLE, spec, EXCLUDE)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("bank=mean-radius telco=*", "no column; did you mean 'mean radius'? Write a name that holds"),
        ("bank=zzz telco=*", "no column. Write a name that holds a blank or comma in double quotes"),
    ],
)
def test_what_to_do_about_a_name_with_a_blank_is_a_sentence(spec: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        columns(["mean radius", "age"], spec, ())
    assert said in str(caught.value)


def test_a_bad_table_says_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="two columns of the same name: 'a'"):
        columns(["a", "b", "a"], "bank=*", ())
    with pytest.raises(ConfigError, match="column names should be text"):
        columns([0, 1], "bank=*", ())  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"'c0', .*'c7' and 2 more"):
        columns([f"c{i}" for i in range(10)] + ["x"], "bank=x", ())
