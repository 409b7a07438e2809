"""A policy that names what there is not, is refused before anything is served."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from protocols.errors import ConfigError
from protocols.policy.rules import Bound
from protocols.programs import registered
from protocols.service import check
from protocols.service.agent import serve_party
from protocols.service.check import check_names
from protocols.service.config import PartyConfig, read_config
from tests.support.granted import rule
from tests.support.served import lay_out
from tests.support.waiting import HANG

TABLE = pd.DataFrame({"id": [1, 2], "calls": [0.0, 1.0], "roaming": [2.0, 3.0]})
METHODS = (
    "there are align, fedavg, split-net, vertical-boosting, vertical-boosting-plain, vertical-linear, "
    "vertical-linear-plain, vertical-net"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("known")
    lay_out(folder, {"bank": None, "telco": TABLE})
    TABLE.rename(columns={"calls": "visits"}).to_parquet(folder / "shop.parquet")
    with closing(sqlite3.connect(folder / "post.db")) as database:
        TABLE.rename(columns={"calls": "parcels"}).to_sql("people", database, index=False)
    config = folder / "telco.toml"
    more = '[tables.shop]\npath = "shop.parquet"\nid = "id"\n'
    more += '[tables.post]\nurl = "sqlite:///post.db"\nquery = "select * from people"\nid = "id"\n'
    config.write_text(config.read_text().replace("[[policy]]", more + "[[policy]]"))
    return folder


def party(folder: Path, **changes: Any) -> PartyConfig:
    policy = (rule(), rule(**changes))
    return read_config(folder / "telco.toml")[0].model_copy(update={"policy": policy})


EPOCHS = {"epochs": Bound(max=9)}
MISSPELT: list[tuple[dict[str, Any], str]] = [
    (
        {"methods": ("fedavg", "vertical-nat")},
        f"methods: no method 'vertical-nat' is registered here; {METHODS}; did you mean 'vertical-net'?",
    ),
    (
        {"parameters": {"fedavgg": EPOCHS}},
        f"parameters: no method 'fedavgg' is registered here; {METHODS}; did you mean 'fedavg'?",
    ),
    (
        {"parameters": {"vertical-net": {"epoch": Bound(max=9)}}},
        "parameters.vertical-net: there is no parameter 'epoch' of vertical-net; there are label_party, "
        "kind, hidden, epochs, batch_size, learning_rate, optimizer, momentum, weight_decay, standardise, "
        "duplicates, normalise, protocol, may_be_empty; did you mean 'epochs'?",
    ),
    (
        {"methods": ("align",), "parameters": {"*": {"reveals": Bound(values=("size",))}}},
        "parameters.*: there is no parameter 'reveals' of the rule's methods; there are label_party, "
        "duplicates, normalise, reveal, protocol; did you mean 'reveal'?",
    ),
    (
        {"tables": ("main",), "columns": ("callls", "roaming")},
        "columns: there is no column 'callls' that methods may use in main; did you mean 'calls'?",
    ),
    (
        {"tables": ("shop",), "columns": ("visit",)},
        "columns: there is no column 'visit' that methods may use in shop; did you mean 'visits'?",
    ),
    (
        {"tables": ("post",), "columns": ("parcel",)},
        "columns: there is no column 'parcel' that methods may use in post; did you mean 'parcels'?",
    ),
    (
        {"columns": ("parcel", "calls")},
        "columns: there is no column 'parcel' that methods may use in main, shop, post; did you mean "
        "'parcels'?",
    ),
]


@pytest.mark.parametrize(("changes", "said"), MISSPELT)
def test_what_there_is_not_is_named_with_the_nearest(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    async def serve() -> None:
        config = party(folder, **changes)
        async with asyncio.timeout(HANG):
            await serve_party(config, read_config(folder / "telco.toml")[1])

    with pytest.raises(ConfigError) as caught:
        asyncio.run(serve())
    assert str(caught.value) == f"telco/configuration: policy 2, {said}"


def test_what_there_is_passes(folder: Path) -> None:
    check_names(party(folder))
    check_names(party(folder, columns=("calls", "visits", "parcels", "roaming")))
    bounds = {"*": {**EPOCHS, "rounds": Bound(max=3)}, "fedavg": {"rounds": Bound(max=2)}}
    check_names(party(folder, parameters=bounds))


@pytest.mark.parametrize("granted", [("callls",), ("*",)])
def test_a_table_that_cannot_be_read_now_is_logged(
    folder: Path, caplog: pytest.LogCaptureFixture, granted: tuple[str, ...]
) -> None:
    config = party(folder, columns=granted)
    tables = {**config.tables, "main": config.tables["main"].model_copy(update={"path": Path("none.csv")})}
    check_names(config.model_copy(update={"tables": tables}))
    (record,) = caplog.records
    assert (record.getMessage(), vars(record)["table"]) == ("table not read", "main")
    with pytest.raises(ConfigError, match=r"no column 'callls'.*in shop"):
        check_names(party(folder, tables=("shop",), columns=("callls",)))


def test_a_package_that_does_not_import_is_in_nobodys_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = EntryPoint("broken", "no_such_package:program", "vfl.programs")
    both = {**registered(), "broken": broken}
    monkeypatch.setattr(check, "registered", lambda: both)
    monkeypatch.setattr("protocols.programs.registered", lambda: both)
    check_names(party(folder, methods=("broken",), parameters={"*": {"epoch": Bound(max=9)}}))
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        check_names(party(folder, methods=("vertical-net",), parameters={"*": {"epoch": Bound(max=9)}}))
