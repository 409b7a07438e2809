"""The transport against a bare gRPC stream of the same bytes over the same TLS, two processes on loopback.

Bare is `grpc.aio` without frames, acknowledgements, ledger, encoding or a mailbox: chunks of 1 MiB one way
and a word back, or 8 KB back and forth. Ours is a message through `Party.send` and `recv`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from typing import Annotated, Any, Protocol

import grpc
import grpc.aio
import numpy as np

from protocols.arrays import Array
from protocols.errors import LineError
from protocols.party import Desk, Party
from protocols.wire.frames import CHUNK, LARGEST_FRAME
from protocols.wire.ledger import Ledger
from protocols.wire.message import Message, Spec
from protocols.wire.remote import Grpc, network_loop
from protocols.wire.tls import Credentials, channel_credentials, server_credentials
from tests.bench import Ratio, Row, bench, ratio
from tests.protocols.wire.network import HERE, certified

LARGE = 100_000_000
TRIPS = 200
_OPTIONS = [("grpc.max_receive_message_length", LARGEST_FRAME), ("grpc.ssl_target_name_override", "shop")]


class Table(Message, reveals="an array"):
    x: Annotated[Array, Spec("float32", ("n",))]


class Done(Message, reveals="that it came"):
    pass


class Stream(Protocol):
    """The bare stream's client end."""

    async def write(self, raw: bytes) -> None: ...

    async def read(self) -> bytes: ...


def on_network(work: Coroutine[Any, Any, Any]) -> Any:
    """Run on the loop that gRPC runs on, as the transport does."""
    return asyncio.run_coroutine_threadsafe(work, network_loop()).result(60)


async def _count(_: object, context: Any) -> None:
    while True:
        left = LARGE
        while left > 0:
            raw = await context.read()
            if raw is grpc.aio.EOF:
                return
            left -= len(raw)
        await context.write(b"done")


async def _echo(_: object, context: Any) -> None:
    while (raw := await context.read()) is not grpc.aio.EOF:
        await context.write(raw)


async def _serve_bare(files: Credentials) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=_OPTIONS)
    methods = {"Count": _count, "Echo": _echo}
    handlers = {name: grpc.stream_stream_rpc_method_handler(m) for name, m in methods.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare.Bare", handlers),))
    port = server.add_secure_port(HERE, server_credentials(files, "shop"))
    await server.start()
    return server, port


async def _shop(line: Connection, files: Credentials) -> None:
    server, port = await asyncio.to_thread(on_network, _serve_bare(files))
    async with Grpc("shop", {"bank": None, "shop": HERE}, files) as transport:
        line.send((transport.address, f"127.0.0.1:{port}"))
        ledger = Ledger(transport)
        me = Party(Desk("shop", ledger))
        try:
            while True:
                table = await me.recv("bank", Table)
                await me.send("bank", Done() if table.x.nbytes == LARGE else table)
        except LineError:
            pass  # bank has left
    await asyncio.to_thread(on_network, server.stop(0))


def _other(line: Connection, files: Credentials) -> None:
    asyncio.run(_shop(line, files))


@asynccontextmanager
async def _bare(address: str, method: str) -> AsyncIterator[Stream]:
    secure = channel_credentials(certified("bank").read("bank"))
    async with grpc.aio.secure_channel(address, secure, _OPTIONS) as channel:
        yield channel.stream_stream(f"/bare.Bare/{method}")()


@contextmanager
def _pair() -> Any:
    """Both ends up: the addresses that the other process serves on."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_other, args=(theirs, certified("shop")))
    process.start()
    try:
        yield ours.recv()
        process.join(10)
    finally:
        process.kill()


def _compare(array: Array, method: str, repeats: int, trips: int) -> Ratio:
    with _pair() as (ours, bare), asyncio.Runner() as runner:
        transport = Grpc("bank", {"bank": None, "shop": ours}, certified("bank"))
        runner.run(transport.__aenter__())
        ledger = Ledger(transport)
        me = Party(Desk("bank", ledger))
        stream = _bare(bare, method)
        call = on_network(stream.__aenter__())
        raw = array.tobytes()
        chunks = [raw[i : i + CHUNK] for i in range(0, len(raw), CHUNK)]

        async def send() -> None:
            for _ in range(trips):
                await me.send("shop", Table(x=array))
                await me.recv("shop", Done if array.nbytes == LARGE else Table)

        async def send_bare() -> None:
            for _ in range(trips):
                for chunk in chunks:
                    await call.write(chunk)
                await call.read()

        found = ratio(lambda: runner.run(send()), lambda: on_network(send_bare()), repeats)
        call.cancel()
        on_network(stream.__aexit__(None, None, None))
        runner.run(transport.__aexit__(None, None, None))
    return found


@bench
def network_large() -> list[Row]:
    """A 100 MB array, from `send` to the word that it came."""
    found = _compare(np.zeros(LARGE // 4, np.float32), "Count", repeats=5, trips=1)
    return [Row("100 MB over the network", found, target=1 / 0.6, note="time over a bare gRPC stream's")]


@bench
def network_round_trip() -> list[Row]:
    """8 KB there and back."""
    found = _compare(np.zeros(2048, np.float32), "Echo", repeats=7, trips=TRIPS)
    return [Row("8 KB there and back", found, target=2.5, note="time over a bare gRPC stream's")]
