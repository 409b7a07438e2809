"""How one table is dealt out to parties: rows to clients, columns to organisations.

Takes part: nobody; these are pure functions that a simulation calls before any role starts. They see
the whole table, so they belong to experiments. Between real organisations the data is already divided.

Rows: `iid`, `dirichlet` (label skew) and `by_column` (the partition that the data brings along).
Columns: `columns`, by shell patterns over column names.

Sources: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019; Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks",
ICML 2019 (one Dirichlet draw per class over the clients, redrawn until every client has enough rows).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

from protocols.errors import ConfigError, DataError, nearest

QUOTED = r'"(?:[^"]|"")*"'
ITEM = rf'{QUOTED}|[^\s",]+'  # a column's name or a pattern
# Possessive: else blanks before a misplaced quote would match as an empty word.
WORD = re.compile(rf'\s*+(?:(?P<party>[^\s="]*)=)?(?P<items>(?:{ITEM})?(?:,(?:{ITEM})?)*)(?=\s|$)')
REDRAWS = 1000
"""Draws that `dirichlet` tries before it says that the request is out of reach."""


def iid(n: int, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Deal rows 0..n-1 to `clients` at random; sizes differ by at most one.

    Returns one sorted int64 array of row positions per client; every row is in exactly one.
    Raises ConfigError if a client would get no row.
    """
    _enough(n, clients, min_rows=1)
    return [np.sort(rows) for rows in np.array_split(rng.permutation(n).astype(np.int64), clients)]


def dirichlet(
    labels: np.ndarray | pd.Series,
    clients: int,
    alpha: float,
    rng: np.random.Generator,
    min_rows: int = 1,
) -> list[np.ndarray]:
    """Deal rows so that clients differ in their mix of classes.

    labels: (n,) class of every row, any dtype, none missing. For each class the clients' shares are one
    draw from Dirichlet(alpha, ..., alpha): small alpha gives a class to few clients, large alpha tends
    to equal shares. The draw is repeated until every client has at least `min_rows` rows.

    Returns one sorted int64 array of row positions per client; every row is in exactly one.
    Raises ConfigError for a setting that cannot be met, DataError for labels that are not one column
    or have gaps.
    """
    if np.ndim(labels) != 1:
        raise DataError(f"dirichlet: labels should be one column of shape (n,), got {np.shape(labels)}")
    if not (np.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"dirichlet: alpha should be a positive number, got {alpha}")
    _enough(len(labels), clients, min_rows)
    codes, classes = pd.factorize(labels)
    missing = int((codes < 0).sum())
    if missing:
        raise DataError(f"dirichlet: {missing} of {len(codes)} labels are missing; drop those rows first")
    sizes = np.bincount(codes, minlength=len(classes))
    cuts = _draw_cuts(sizes, clients, alpha, rng, min_rows)
    dealt: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for code in range(len(classes)):
        rows = rng.permutation(np.flatnonzero(codes == code))
        for client, share in enumerate(np.split(rows, cuts[code])):
            dealt[client].append(share)
    return [np.sort(np.concatenate(shares)).astype(np.int64) for shares in dealt]


def by_column(series: pd.Series) -> dict[str, np.ndarray]:
    """The natural partition: one client per distinct value of a column, such as the branch of a bank.

    Returns {str(value): sorted int64 row positions}, ordered by value; every row is in exactly one.
    Raises DataError if the column is empty, has missing values, or if two values read the same as text.
    """
    codes, values = pd.factorize(series, sort=True)
    name = series.name
    if not len(codes):
        raise DataError(f"by_column: column {name!r} has no rows")
    missing = int((codes < 0).sum())
    if missing:
        raise DataError(
            f"by_column: {missing} of {len(codes)} rows have no value in column {name!r}; "
            "fill or drop them, since every row needs a client"
        )
    names = [str(value) for value in values]
    if len(set(names)) < len(names):
        raise DataError(
            f"by_column: column {name!r} holds different values that read the same as text (1 and '1'); "
            "convert the column to one type"
        )
    order = np.argsort(codes, kind="stable").astype(np.int64)
    rows = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    return dict(zip(names, rows, strict=True))


def columns(
    names: Sequence[str], spec: str | Mapping[str, str | Sequence[str]], exclude: Collection[str]
) -> dict[str, list[str]]:
    """Who holds which columns.

    names: the table's columns, in order. spec: `"bank=LIMIT_BAL,SEX,PAY_* telco=*"`, or a mapping from
    party to one pattern or several. In text, a name or pattern with blanks or commas stands in double quotes,
    and a quote within it is written twice: `clinic="mean radius" lab=*`. Patterns are case-sensitive shell
    patterns; a column's exact name comes before its reading as a pattern; `*` alone takes every column
    not named otherwise. exclude: the id and the target, which belong to no list.

    Returns {party: columns in the table's order}. Every column but those excluded is at exactly one party.
    Raises ConfigError for a spec that does not read so.
    """
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(
            "parties: column names should be text; rename them, as in table.columns.astype(str)"
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ConfigError(f"parties: the table has two columns of the same name: {_list(repeated)}")
    wanted = _parse(spec) if isinstance(spec, str) else _as_lists(spec)
    owner: dict[str, tuple[str, str]] = {}
    for party, patterns in wanted.items():
        for pattern in patterns:
            if pattern != "*":
                _claim(owner, party, pattern, names, exclude)
    free = [name for name in names if name not in owner and name not in exclude]
    takers = [party for party, patterns in wanted.items() for pattern in patterns if pattern == "*"]
    if len(takers) > 1:
        raise ConfigError(f"parties: '*' (every column not named otherwise) is given twice: {_list(takers)}")
    if free and not takers:
        raise ConfigError(
            f"parties: no party holds {_list(free)}; add party=* for the rest, or drop them from the table"
        )
    owner.update((name, (takers[0], "*")) for name in free)
    held = {party: [name for name in names if name in owner and owner[name][0] == party] for party in wanted}
    bare = [party for party, own in held.items() if not own]
    if bare:
        raise ConfigError(f"parties: no column is left for {_list(bare)}; every party needs at least one")
    return held


def _enough(n: int, clients: int, min_rows: int) -> None:
    if clients < 1 or min_rows < 1:
        raise ConfigError(f"clients and min_rows should be at least 1, got {clients} and {min_rows}")
    if n < clients * min_rows:
        raise ConfigError(
            f"{n} rows are not enough for {clients} clients with at least {min_rows} each; use fewer clients"
        )


def _draw_cuts(
    sizes: np.ndarray, clients: int, alpha: float, rng: np.random.Generator, min_rows: int
) -> np.ndarray:
    """Where to cut each class's rows: (classes, clients - 1) int64."""
    best = 0
    for _ in range(REDRAWS):
        shares = rng.dirichlet(np.full(clients, alpha), size=len(sizes))
        cuts = np.rint(np.cumsum(shares, axis=1)[:, :-1] * sizes[:, None]).astype(np.int64)
        edges = np.column_stack([np.zeros_like(sizes), cuts, sizes])
        fewest = int(np.diff(edges, axis=1).sum(axis=0).min())
        if fewest >= min_rows:
            return np.asarray(cuts)
        best = max(best, fewest)
    raise ConfigError(
        f"dirichlet: {REDRAWS} draws with alpha={alpha} left one of {clients} clients with fewer than "
        f"{min_rows} rows (best: {best}); raise alpha, or lower clients or min_rows"
    )


def _parse(spec: str) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    party, at, end = None, 0, len(spec.rstrip())
    while at < end:
        word = WORD.match(spec, at)
        if word is None:
            raise _misquoted(spec[at:].strip())
        at = word.end()
        if word["party"] is not None:
            party = word["party"]
            if party in wanted:
                raise ConfigError(f"parties: {party!r} is given twice; write all its columns after one '='")
            wanted[party] = []
        if party is None:
            raise ConfigError(
                f"parties: {word[0].strip()!r} stands before any party; write party=COLUMN,COLUMN"
            )
        items = re.findall(ITEM, word["items"])
        wanted[party] += [item[1:-1].replace('""', '"') if item[0] == '"' else item for item in items]
    return _checked(wanted)


def _misquoted(rest: str) -> ConfigError:
    if rest.count('"') % 2:
        return ConfigError(
            f"parties: a quote is not closed in {rest!r}; write for example "
            'clinic="mean radius","mean texture", and "" for a quote within a name'
        )
    return ConfigError(
        f"parties: a quoted name touches other text in {rest!r}; put the whole name in quotes, and a comma "
        "or blank after it"
    )


def _as_lists(spec: Mapping[str, str | Sequence[str]]) -> dict[str, list[str]]:
    return _checked({party: [own] if isinstance(own, str) else list(own) for party, own in spec.items()})


def _checked(wanted: dict[str, list[str]]) -> dict[str, list[str]]:
    if not wanted:
        raise ConfigError('parties: none given; write for example "bank=AGE,INCOME shop=*"')
    for party, patterns in wanted.items():
        if not re.fullmatch(r"[^\s.]+", party):
            raise ConfigError(
                f"parties: {party!r} is no party name; it should not be empty, nor hold a dot or space"
            )
        if not patterns:
            raise ConfigError(
                f"parties: {party} has no column; write {party}=COLUMN, or {party}=* for the rest"
            )
    return wanted


def _claim(
    owner: dict[str, tuple[str, str]],
    party: str,
    pattern: str,
    names: Sequence[str],
    exclude: Collection[str],
) -> None:
    """Give `party` the columns that `pattern` matches."""
    if pattern in exclude:
        raise ConfigError(
            f"parties: {party} lists {pattern!r}, which is the id or the target; leave it out of the lists"
        )
    matched = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
    matched = [name for name in matched if name not in exclude]
    if not matched:
        hint = nearest(pattern, [name for name in names if name not in exclude])
        if any(re.search(r'[\s,"]', name) for name in names):
            hint += f"{'' if hint else '.'} Write a name that holds a blank or comma in double quotes"
        raise ConfigError(f"parties: {party}'s {pattern!r} matches no column{hint}")
    for name in matched:
        if name in owner:
            other, by = owner[name]
            raise ConfigError(
                f"parties: column {name!r} is named twice, by {other}'s {by!r} and by {party}'s {pattern!r}; "
                "a column has one owner"
            )
        owner[name] = (party, pattern)


def _list(words: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(word) for word in words[:most])
    return shown if len(words) <= most else f"{shown} and {len(words) - most} more"
