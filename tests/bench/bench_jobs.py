"""A job among three local processes against the same run in one: what the network, the ledgers and the
checkpoints cost. Starting the processes is not measured; agreeing, aligning and keeping the parts is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

from horizontal import FedClassifier
from protocols.service.caller import Connected
from tests.bench import Ratio, Row, bench, ratio
from tests.support.served import Process, lay_out
from vfl import VerticalNetClassifier

ROWS = 5000
REPEATS = 5
POLICY = (
    'min_intersection = 5\nprotocols = ["ecdh", "kkrt", "unbalanced"]\nmax_asked_job = 0\nmax_asked_day = 0\n'
)


def people() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(size=(ROWS, 30))).rename(columns="x{}".format)
    return x.assign(id=np.arange(ROWS), y=(x.iloc[:, ::3].sum(axis=1) > 0).astype(int))


def columns() -> dict[str, pd.DataFrame]:
    """A third of the columns at each of three parties."""
    whole = people()
    parts = {
        party: ["id", *whole.columns[i : i + 10]] for i, party in ((0, "bank"), (10, "telco"), (20, "shop"))
    }
    tables = {party: whole[names] for party, names in parts.items()}
    return {**tables, "bank": tables["bank"].assign(y=whole["y"])}


def rows() -> dict[str, pd.DataFrame | None]:
    """Half of the rows at each of two clients, and a server without any."""
    whole = people()
    return {"server": None, "north": whole[::2], "south": whole[1::2]}


@contextmanager
def connected(
    caller: str, tables: Mapping[str, pd.DataFrame | None], policy: str = ""
) -> Iterator[Connected]:
    """All parties but the caller, each a process. policy: what their rules say besides, as TOML."""
    with TemporaryDirectory() as folder:
        book = lay_out(Path(folder), tables, POLICY + policy)
        others = [Process(Path(folder) / f"{party}.toml") for party in tables if party != caller]
        try:
            with Connected(book, caller, tables[caller], patience=60.0) as all_:
                yield all_
        finally:
            for process in others:
                process.stop()


def compare(caller: str, tables: Mapping[str, pd.DataFrame | None], fit: Callable[[Any], object]) -> Ratio:
    """Time of `fit` over the network over its time in this process."""
    here = {party: table for party, table in tables.items() if table is not None}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the others have
    try:
        with connected(caller, tables) as there:
            return ratio(lambda: fit(there), lambda: fit(here), REPEATS)
    finally:
        torch.set_num_threads(threads)


@bench
def network_vertical() -> list[Row]:
    """The vertical network, three parties with ten columns each."""

    def fit(data: Any) -> object:
        model = VerticalNetClassifier(epochs=3, batch_size=64, random_state=1)
        return model.fit(data, target="bank.y", id="id")

    found = compare("bank", columns(), fit)
    note = f"time over one process's; {ROWS} rows, 3 epochs of batches of 64"
    return [Row("vertical network, 3 processes", found, target=2.5, note=note)]


@bench
def network_fedavg() -> list[Row]:
    """FedAvg of two clients, one of which calls, at a server."""

    def fit(data: Any) -> object:
        model = FedClassifier(rounds=10, batch_size=64, random_state=1)
        return model.fit(data, target="y", id="id")

    found = compare("north", rows(), fit)
    note = f"time over one process's; {ROWS} rows, 10 rounds of one epoch"
    return [Row("FedAvg, 3 processes", found, target=2.5, note=note)]
