"""A peer that refuses a party's line, for whatever reason, costs the others nothing, and may come back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pandas as pd
import pytest
import torch

from protocols.network.frames import Limits
from protocols.network.grpc import Grpc, network_loop
from protocols.network.link import METHOD
from protocols.network.tls import Credentials, server_credentials
from protocols.service.caller import Connected
from protocols.service.certificates import fingerprint
from protocols.service.config import Parties
from protocols.service.jobs import Control
from tests.support.network import bounded
from tests.support.networked import POLICY, columns
from tests.support.served import lay_out, serving
from vfl import VerticalNetClassifier

LIMITS = Limits(handshake=2.0, again=0.3)  # and patience: refused comes before lost
SOON = 1.0  # seconds
MOST = 40  # times that a peer is listened to in a second, where nothing comes from it


def tables() -> dict[str, pd.DataFrame]:
    """The telco, which is dialled by the bank and dials zeta."""
    found = columns()
    return {"bank": found["bank"], "telco": found["telco"], "zeta": found["bank"]}


def fit(caller: Connected) -> float:
    """Seconds that a whole job takes."""
    begin = time.monotonic()
    model = VerticalNetClassifier(epochs=1, batch_size=64, random_state=1)
    model.fit(caller, target=f"{caller.me}.y", id="id")
    return time.monotonic() - begin


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("refused")
    lay_out(folder, tables(), POLICY)
    return folder


@pytest.fixture(autouse=True)
def telco(folder: Path) -> Iterator[None]:
    """It has never heard of zeta."""
    with serving(folder, "telco", limits=LIMITS):
        yield


def calling(folder: Path, caller: str) -> Connected:
    """An honest caller of the telco alone."""
    place = folder / f"{caller}-book.toml"
    lines = (folder / "parties.toml").read_text().splitlines()
    other = "zeta = " if caller == "bank" else "bank = "
    place.write_text("\n".join(line for line in lines if not line.startswith(other)))
    return Connected(place, caller, tables()[caller], patience=20.0)


opened: list[str] = []  # streams, by what they were ended with
Peer = Callable[[Parties], AbstractAsyncContextManager[object]]


def held(parties: Parties, party: str) -> Credentials:
    found = parties.credentials(party)
    assert found is not None
    return found


def without_us(parties: Parties) -> Grpc:
    """It has taken the telco out of its book."""
    book = {"zeta": parties.book["zeta"], "bank": None}
    return Grpc("zeta", book, parties.credentials("zeta"))


def revoking(parties: Parties) -> Grpc:
    """It has revoked the telco's certificate."""
    ours = fingerprint(Path(held(parties, "telco").certificate))
    book = {"zeta": parties.book["zeta"], "telco": None}
    return Grpc("zeta", book, parties.credentials("zeta"), revoked=[ours])


def saying(status: str) -> Peer:
    """It ends each stream with that."""

    async def end(_: object, context: Any) -> None:
        opened.append(status)
        await context.read()
        if status != "OK":
            await context.abort(grpc.StatusCode[status], "no")

    @asynccontextmanager
    async def listen(parties: Parties) -> AsyncIterator[None]:
        async def start() -> grpc.aio.Server:
            server = grpc.aio.server()
            service, _, method = METHOD.strip("/").partition("/")
            handlers = {method: grpc.stream_stream_rpc_method_handler(end)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
            server.add_secure_port(
                parties.book["zeta"], server_credentials(partial(held(parties, "zeta").read, "zeta"))
            )
            await server.start()
            return server

        def there(work: Any) -> Any:
            return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, network_loop()))

        server = await there(start())
        try:
            yield
        finally:
            await there(server.stop(0))

    return listen


REFUSALS = ("FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "UNIMPLEMENTED", "INTERNAL", "OK")
PEERS: dict[str, Peer] = {
    "not in its book": without_us,
    "revoked": revoking,
    **{status: saying(status) for status in REFUSALS},
}


@pytest.fixture(scope="module")
def bank(folder: Path) -> Iterator[Connected]:
    with calling(folder, "bank") as bank:
        yield bank


@pytest.mark.parametrize("case", PEERS)
def test_a_line_that_is_refused_is_waited_out(
    folder: Path,
    bank: Connected,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: Counter[str] = Counter()
    hear = Control.hear

    async def counted(self: Control, sender: str) -> Any:
        heard[sender] += self._me == "telco"
        return await hear(self, sender)

    def told(event: str) -> int:
        return [(record.msg, getattr(record, "peer", "")) for record in caplog.records].count((event, "zeta"))

    async def refuse() -> None:
        async with PEERS[case](Parties.read(folder / "parties.toml")):
            while not (case in opened or told("line refused")):
                await asyncio.sleep(0.01)
            heard.clear()
            begin = time.monotonic()
            took = await asyncio.to_thread(lambda: min(fit(bank) for _ in range(3)))
            assert took < usual + SOON
            assert heard["zeta"] <= MOST * (time.monotonic() - begin + 1)

    fit(bank)
    usual = fit(bank)
    opened.clear()
    monkeypatch.setattr(Control, "hear", counted)
    with caplog.at_level("INFO"):
        bounded(refuse(), 30.0)
    assert told("line refused") <= 1 and not told("request failed")
    with calling(folder, "zeta") as zeta:  # as it should be
        fit(zeta)
