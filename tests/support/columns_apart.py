"""Tables of parties that share most of their rows, and a record of what crosses between them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from protocols.wire.transport import Envelope, Local


class Recording(Local):
    """Carries envelopes, and keeps them all in `carried`."""

    carried: list[Envelope]

    async def deliver(self, envelope: Envelope) -> None:
        self.carried.append(envelope)
        await super().deliver(envelope)


def overlapping(
    table: pd.DataFrame, columns: Mapping[str, list[str]], seed: int = 0, overlap: float = 0.8
) -> dict[str, pd.DataFrame]:
    """Each party's columns and the id `customer`, every party with rows of its own that nobody else has,
    in an order of its own. A fraction `overlap` of `table` is at all parties."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(table))
    common, rest = np.split(order, [round(overlap * len(table))])
    own = np.array_split(rest, len(columns))
    return {
        party: table.iloc[rng.permutation(np.concatenate([common, part]))][["customer", *names]]
        for (party, names), part in zip(columns.items(), own, strict=True)
    }


def small(n: int = 100, parties: int = 2, seed: int = 0, overlap: float = 0.8) -> dict[str, pd.DataFrame]:
    """bank (with the label `default`), shop and perhaps telco: two columns each, text ids."""
    rng = np.random.default_rng(seed)
    names = [f"x{i}" for i in range(2 * parties)]
    table = pd.DataFrame(rng.normal(size=(n, len(names))), columns=names)
    table["default"] = (table.sum(axis=1) + 0.3 * rng.normal(size=n) > 0).astype(int)
    table["amount"] = 150 + 40 * table[names].sum(axis=1)
    table["customer"] = [f"C{number}" for number in rng.permutation(n)]
    columns = {name: names[2 * i : 2 * i + 2] for i, name in enumerate(["bank", "shop", "telco"][:parties])}
    columns["bank"] = [*columns["bank"], "default", "amount"]
    return overlapping(table, columns, seed, overlap)


def joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What pandas makes of it: the inner join, ordered by the bytes of the ids."""
    first, *others = tables.values()
    for table in others:
        first = first.merge(table, on="customer")
    order = sorted(range(len(first)), key=lambda row: str(first["customer"].iloc[row]).encode())
    return first.iloc[order].reset_index(drop=True)
