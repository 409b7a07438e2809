"""The transport against a bare gRPC stream of the same bytes over the same TLS, two processes on loopback.

Bare is `grpc.aio` with the same channel options, without frames, acknowledgements, digests, ledger, encoding
or a mailbox: chunks of 1 MiB one way and a word back, or 8 KB back and forth. Ours is a message through
`Party.send` and `recv`. Both keep two cores busy: where other work shares them, a ratio says little.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any, Protocol

import grpc
import grpc.aio
import numpy as np

from protocols.arrays import Array
from protocols.errors import LineError
from protocols.network.endpoint import channel_options
from protocols.network.frames import CHUNK, Limits
from protocols.network.grpc import Grpc, network_loop
from protocols.network.tls import Credentials, channel_credentials, last_good, server_credentials
from protocols.party import Coordinator, Desk, Party
from protocols.service.certificates import new_authority, new_party
from protocols.wire.ledger import Ledger
from protocols.wire.message import Message, Spec
from tests.bench import Ratio, Row, bench, ratio
from tests.support.network import HERE, certified

LARGE = 100_000_000
TRIPS = 200
IDLE = 200
_OPTIONS = [*channel_options(Limits()), ("grpc.ssl_target_name_override", "shop")]


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


@contextmanager
def _beside(work: Callable[..., None], *known: Any) -> Iterator[Any]:
    """`work` in a process of its own, which sends one thing when it is ready."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *known))
    process.start()
    try:
        yield ours.recv(), ours
        process.join(10)
    finally:
        process.kill()


# Against a bare stream.


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
    pings = ("grpc.http2.min_ping_interval_without_data_ms", 500)  # while ours is measured, this one is idle
    server = grpc.aio.server(options=[*_OPTIONS, pings])
    methods = {"Count": _count, "Echo": _echo}
    handlers = {name: grpc.stream_stream_rpc_method_handler(m) for name, m in methods.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare.Bare", handlers),))
    port = server.add_secure_port(HERE, server_credentials(last_good(files, "shop")))
    await server.start()
    return server, port


@asynccontextmanager
async def _bare(address: str, method: str) -> AsyncIterator[Stream]:
    secure = channel_credentials(certified("bank").read("bank"))
    async with grpc.aio.secure_channel(address, secure, _OPTIONS) as channel:
        yield channel.stream_stream(f"/bare.Bare/{method}")()


async def _answer(line: Connection, bare: str, files: Credentials) -> None:
    async with Grpc("shop", {"bank": None, "shop": HERE}, files) as transport:
        line.send((transport.address, bare))
        me = Party(Desk("shop", Ledger(transport)))
        try:
            while True:
                table = await me.recv("bank", Table)
                await me.send("bank", Done() if table.x.nbytes == LARGE else table)
        except LineError:
            pass  # bank has left


def _other(line: Connection, files: Credentials, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
    server, port = on_network(_serve_bare(files))
    run(_answer(line, f"127.0.0.1:{port}", files))
    on_network(server.stop(0))


def _compare(
    array: Array, method: str, repeats: int, trips: int, run: Callable[[Coroutine[Any, Any, Any]], Any]
) -> Ratio:
    where = on_network if run is on_network else asyncio.run  # in the other process too
    with _beside(_other, certified("shop"), where) as ((ours, bare), _):
        transport = Grpc("bank", {"bank": None, "shop": ours}, certified("bank"))
        run(transport.__aenter__())
        me = Party(Desk("bank", Ledger(transport)))
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

        found = ratio(lambda: run(send()), lambda: on_network(send_bare()), repeats)
        call.cancel()
        on_network(stream.__aexit__(None, None, None))
        run(transport.__aexit__(None, None, None))
    return found


@bench
def network_large() -> list[Row]:
    """A 100 MB array, from `send` to the word that it came."""
    with asyncio.Runner() as runner:
        found = _compare(np.zeros(LARGE // 4, np.float32), "Count", repeats=9, trips=1, run=runner.run)
    return [Row("100 MB over the network", found, target=1 / 0.6, note="time over a bare gRPC stream's")]


@bench
def network_round_trip() -> list[Row]:
    """8 KB there and back: with roles on a loop of their own, and on the network's."""
    array = np.zeros(2048, np.float32)
    with asyncio.Runner() as runner:
        apart = _compare(array, "Echo", repeats=15, trips=TRIPS, run=runner.run)
    together = _compare(array, "Echo", repeats=15, trips=TRIPS, run=on_network)
    said = "time over a bare gRPC stream's"
    return [
        Row("8 KB there and back", apart, target=2.5, note=said),
        Row("8 KB, roles on the network's loop", together, target=2.5, note=said),
    ]


# Idle parties.


def _memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _coordinate(line: Connection, names: list[str], files: Credentials) -> None:
    changes = asyncio.Semaphore(0)
    book = {"hub": HERE, **dict.fromkeys(names)}
    async with Grpc("hub", book, files, on_change=lambda _: changes.release()) as transport:
        before = _memory()
        line.send(transport.address)
        for _ in names:
            await changes.acquire()
        each = (_memory() - before) / len(names)
        me = Coordinator(Desk("hub", Ledger(transport), parties=("hub", *names)))
        table = Table(x=np.zeros(2_500, np.float32))
        times = []
        for turn in range(5):
            async with me.within(turn) as at:
                start = perf_counter()
                await at.broadcast(table)
                await at.gather(Done)
                times.append(perf_counter() - start)
        line.send((each, times))


def _hub(line: Connection, names: list[str], files: Credentials) -> None:
    asyncio.run(_coordinate(line, names, files))


async def _idle(address: str, names: list[str], files: dict[str, Credentials]) -> None:
    async def party(name: str) -> None:
        transport = await stack.enter_async_context(Grpc(name, {"hub": address, name: None}, files[name]))
        me = Party(Desk(name, Ledger(transport)))
        for turn in range(5):
            async with me.within(turn) as at:
                await at.recv("hub", Table)
                await at.send("hub", Done())

    async with AsyncExitStack() as stack:
        await asyncio.gather(*map(party, names))


@bench
def network_idle() -> list[Row]:
    """200 parties on one coordinator: what each costs it, and 10 KB to all, until all have answered."""
    names = [f"party{i}" for i in range(IDLE)]
    with TemporaryDirectory() as folder:
        new_authority(Path(folder))
        files = {name: new_party(Path(folder), Path(folder), name) for name in ("hub", *names)}
        with _beside(_hub, names, files["hub"]) as (address, line):
            asyncio.run(_idle(address, names, files))
            each, times = line.recv()
    found = Ratio(sorted(times)[len(times) // 2], min(times), max(times))
    note = f"seconds until all have answered; {each / 1024:.0f} KiB of the coordinator's memory for each"
    return [Row(f"10 KB to {IDLE} idle parties", found, target=1.0, note=note)]
