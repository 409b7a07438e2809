"""What a party is refused for, and that both ends say so: who, in which step, why, and what to do."""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protocols.errors import ConfigError, ProtocolError, VflError
from protocols.logs import structured
from protocols.network import proof
from protocols.network.frames import CONTROL, Limits
from protocols.network.grpc import Change, Grpc, network_loop
from protocols.network.link import METHOD
from protocols.network.parties_pb2 import Ack, Bye, Chunk, Frame, Header, Ping
from protocols.network.proof import fingerprint, leaf
from protocols.network.tls import Credentials, last_good, server_credentials
from protocols.service import certificates
from protocols.service.certificates import new_party
from tests.support.network import (
    HERE,
    SOON,
    bank_party,
    bounded,
    certified,
    dialling,
    envelope,
    hello,
    party,
    rogue,
    shop_party,
    tell,
    trial,
    unchecked,
)
from tests.support.stranger import CLOSED, LINE, call, frame, opener
from tests.support.waiting import HANG

PATIENT = Limits(patience=1.5, handshake=0.5)


async def told(transport: Grpc, peer: str) -> str:
    """What a role that waits for `peer` is told, with the kind of error."""
    with pytest.raises(VflError) as found:
        await transport.collect(transport.name, peer, "talk")
    return f"{type(found.value).__name__}: {found.value}"


def seen(party: str, credentials: Credentials | None = None) -> str:
    return fingerprint(leaf((credentials or certified(party)).read(party)))


# Revoked certificates.


def test_a_dialler_whose_certificate_is_revoked_is_told_so_and_so_is_the_one_it_dialled() -> None:
    async def talk() -> None:
        async with (
            party("shop", {"bank": None, "shop": HERE}, SOON, revoked=[seen("bank")]) as shop,
            bank_party(shop.address, SOON) as bank,
        ):
            said = (
                f"the certificate of bank with fingerprint {seen('bank')[:16]}... is revoked in the book of"
            )
            assert f"ProtocolError: shop refuses: PERMISSION_DENIED: {said} shop; bank" in await told(
                bank, "shop"
            )
            assert f"LineError: no connection to bank, which dials us, for 0.6 s: {said}" in await told(
                shop, "bank"
            )

    bounded(talk())


def test_a_dialled_party_whose_certificate_is_revoked_is_refused_and_told() -> None:
    async def talk() -> None:
        async with (
            shop_party(SOON) as shop,
            party("bank", {"bank": None, "shop": shop.address}, SOON, revoked=[seen("shop")]) as bank,
        ):
            said = (
                f"the certificate of shop with fingerprint {seen('shop')[:16]}... is revoked in the book of"
            )
            assert f"ProtocolError: {said} bank; shop needs a new one" in await told(bank, "shop")
            assert f"ProtocolError: bank refuses: PERMISSION_DENIED: {said} bank" in await told(shop, "bank")

    bounded(talk())


def test_where_the_book_revokes_others_the_parties_prove_what_they_hold(tmp_path: Path) -> None:
    """And a renewed certificate takes the place of a revoked one without a restart of either."""
    files = new_party(tmp_path, trial(), "shop")
    limits = Limits(patience=0.6, handshake=2.0, again=0.3)

    async def talk() -> None:
        async with (
            Grpc("shop", {"bank": None, "shop": HERE}, files, limits=limits) as shop,
            party(
                "bank", {"bank": None, "shop": shop.address}, limits, revoked=[seen("shop", files)]
            ) as bank,
        ):
            assert "is revoked" in await told(bank, "shop")
            new_party(tmp_path, trial(), "shop", replace=True)
            assert await bank.reachable("shop", HANG)
            assert await shop.reachable("bank", HANG)  # which has heard that it was refused
            assert await tell(bank, shop, [b"there"]) == [b"there"]

    bounded(talk())


def test_a_stolen_key_that_was_revoked_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who answers with it as shop can show the certificate that shop holds now, but not sign with its key."""
    stolen = new_party(tmp_path, trial(), "shop")

    def prove(*known: Any) -> dict[str, Any]:
        return {**proof.prove(*known), "certificates": [leaf(certified("shop").read("shop"))]}

    monkeypatch.setattr("protocols.network.endpoint.prove", prove)

    async def talk() -> None:
        revoked = [seen("shop", stolen)]
        async with (
            Grpc("shop", {"bank": None, "shop": HERE}, stolen, limits=SOON) as shop,
            party("bank", {"bank": None, "shop": shop.address}, SOON, revoked=revoked) as bank,
        ):
            assert "shop does not prove that it holds a certificate of that name" in await told(bank, "shop")

    bounded(talk())


# Clocks.


def test_certificates_of_tomorrow_name_the_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when this machine's clock is a day behind."""
    monkeypatch.setattr(certificates, "_BACKDATED", timedelta(days=-1))
    shop, bank = (new_party(tmp_path, trial(), name, days=9) for name in ("shop", "bank"))

    async def talk(shop: Credentials, bank: Credentials) -> str:
        book = {"bank": None, "shop": HERE}
        async with (
            Grpc("shop", book, shop, limits=SOON) as dialled,
            Grpc("bank", {**book, "shop": dialled.address}, bank, limits=SOON) as dialler,
        ):
            assert "no connection to bank, which dials us" in await told(dialled, "bank")
            return await told(dialler, "shop")

    assert "is not valid yet, or one of the two clocks is wrong" in bounded(
        talk(unchecked(shop), certified("bank"))
    )
    assert "is our clock right?" in bounded(talk(certified("shop"), unchecked(bank)))
    with pytest.raises(ConfigError, match="^bank/certificates: .* this machine's clock says"):
        bounded(talk(certified("shop"), bank))


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_is_off_by_a_day_is_an_error_at_both_ends(
    days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates that are valid for months do not show it."""
    made = Grpc._line

    def skewed(self: Grpc, peer: str, session: bytes) -> Any:
        line = made(self, peer, session)
        if self.name == "bank":
            real = line._now
            line._now = lambda: real() + days * 86_400
        return line

    monkeypatch.setattr(Grpc, "_line", skewed)

    async def talk() -> None:
        async with shop_party(SOON) as shop, bank_party(shop.address, SOON) as bank:
            for transport, peer in ((bank, "shop"), (shop, "bank")):
                said = await told(transport, peer)
                assert "LineError: " in said and "bank's clock says" in said and "set the wrong one" in said

    bounded(talk())


# What listens there is no party.


async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()
    writer.close()


async def greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.0\r\n")
    await reader.read()
    writer.close()


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1 << 20)
    await reader.read()
    writer.close()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(answer: Answer, secure: bool = False) -> AsyncIterator[str]:
    context = None
    if secure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certified("shop").certificate, certified("shop").key)
    answering: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering[asyncio.current_task()] = writer  # type: ignore[index]  # a handler is a task
        with suppress(OSError):
            await answer(reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in answering.values():
            writer.transport.abort()
        await asyncio.gather(*answering)
        while server._active_count:  # type: ignore[attr-defined]  # also those in the middle of a handshake
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)


OTHERS: dict[str, tuple[Answer, bool, str]] = {
    "a web server": (web, False, "does not speak TLS; is the port right?"),
    "a secure web server": (web, True, "speaks TLS but not gRPC; is the port right?"),
    "one that speaks first": (greeting, False, "does not speak TLS; is the port right?"),
    "one that says nothing": (silence, False, "no answer within 0.5 s .*is what listens there a party"),
    "one that hangs up": (hang_up, False, "UNAVAILABLE"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_port_where_something_else_listens(case: str) -> None:
    answer, secure, reason = OTHERS[case]

    async def talk() -> str:
        async with listening(answer, secure) as address, bank_party(address, PATIENT) as bank:
            return await told(bank, "shop")

    said = bounded(talk())
    assert said.startswith("LineError: no connection to shop, at 127.0.0.1:")
    assert pytest.raises(Exception, match=reason).matches(Exception(said))


def there(work: Any) -> Any:
    """On the network's loop, which serves gRPC."""
    return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, network_loop()))


async def serve_line(answer: Callable[[object, Any], Awaitable[None]] | None) -> tuple[grpc.aio.Server, int]:
    """A gRPC server with the shop's certificate that knows nothing of parties; its port."""
    server = grpc.aio.server()
    if answer is not None:
        service, _, method = METHOD.strip("/").partition("/")
        line = {method: grpc.stream_stream_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, line),))
    port = server.add_secure_port(HERE, server_credentials(last_good(certified("shop"), "shop")))
    await server.start()
    return server, port


def test_a_port_where_another_grpc_service_listens() -> None:
    async def talk() -> None:
        server, port = await there(serve_line(None))
        async with bank_party(f"127.0.0.1:{port}", SOON) as bank:
            assert "speaks gRPC but is no party; is the port right?" in await told(bank, "shop")
        await there(server.stop(0))

    bounded(talk())


def test_an_address_that_does_not_resolve_and_one_where_nobody_listens() -> None:
    async def talk(address: str) -> str:
        async with bank_party(address, SOON) as bank:
            return await told(bank, "shop")

    assert "is its address in the book spelt right, and is DNS there?" in bounded(talk("shop.invalid:7443"))
    assert "nothing listens there; is shop running, and the port right?" in bounded(talk("127.0.0.1:1"))


def test_a_party_that_hears_noise_goes_on_serving() -> None:
    async def talk() -> None:
        async with shop_party(SOON) as shop:
            host, _, port = str(shop.address).rpartition(":")
            for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(500), bytes(70_000)):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(noise)
                with suppress(OSError):  # it may have hung up already
                    writer.write_eof()
                await asyncio.wait_for(reader.read(), HANG)
                writer.transport.abort()
            async with bank_party(shop.address, SOON) as bank:
                assert await tell(bank, shop, [b"fine"]) == [b"fine"]

    bounded(talk())


# Floods.


def note(number: int, job: str) -> bytes:
    header = Header(job=job, scope="s", sequence=number, kind="k", size=0)
    raw: bytes = Frame(chunk=Chunk(number=number, header=header, last=True)).SerializeToString()
    return raw


FLOODS: dict[str, Callable[[int], bytes]] = {
    "pings": lambda i: Frame(ping=Ping(number=i)).SerializeToString(),
    "answers": lambda i: Frame(ping=Ping(number=i, answer=True)).SerializeToString(),
    "acknowledgements": lambda i: Frame(ack=Ack(room=(1 << 30) + i)).SerializeToString(),
    "mail about jobs": lambda i: note(i, CONTROL),
    "mail for no open job": lambda i: note(i, "closed"),
}


@pytest.mark.parametrize("case", FLOODS)
def test_a_flood_of_frames_that_bring_nothing_is_refused_at_both_ends(case: str) -> None:
    limits = Limits(idle_burst=50, idle_rate=1.0, patience=5.0)

    async def talk() -> None:
        changes: list[Change] = []
        async with party("shop", {"bank": None, "shop": HERE}, limits, on_change=changes.append) as shop:
            control = shop.for_job(CONTROL)
            frames = [hello(), *(FLOODS[case](i + 1) for i in range(200))]
            status, reason = await rogue(shop.address, frames, certified("bank"))
            assert status == "RESOURCE_EXHAUSTED"
            assert "bank sends more than 1 frames a second that bring nothing for a job" in reason
            while changes[-1].state != "refused":
                await asyncio.sleep(0.01)
            with pytest.raises(ProtocolError, match="bank sends more than 1 frames a second"):
                await control.deliver(envelope("shop", "bank")._replace(job=CONTROL))

    bounded(talk())


def test_a_conversation_as_fast_as_it_can_be_is_no_flood() -> None:
    limits = Limits(idle_burst=60, idle_rate=100.0)

    async def talk() -> None:
        async with shop_party(limits) as shop, bank_party(shop.address, limits) as bank:
            for i in range(300):
                assert await tell(bank, shop, [b"x"], f"a{i}") == [b"x"]
                assert await tell(shop, bank, [b"y"], f"b{i}") == [b"y"]

    bounded(talk())


def test_streams_that_are_opened_ever_again_are_refused() -> None:
    async def talk() -> None:
        async with shop_party(Limits(streams=3)) as shop:
            opened = [hello(), Frame(bye=Bye()).SerializeToString()]
            for _ in range(3):
                assert (await rogue(shop.address, opened, certified("bank")))[0] in ("OK", "ABORTED")
            status, reason = await rogue(shop.address, opened, certified("bank"))
            assert status == "UNAVAILABLE" and "bank opened 3 streams in a minute" in reason

    bounded(talk())


# Streams on which nothing is said.


@contextmanager
def silence_of(address: str | None, credentials: Credentials) -> Iterator[Any]:
    """A stream that begins with nothing."""
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(10)
        yield from ()

    with dialling(address, credentials) as channel:
        try:
            yield channel.stream_stream(METHOD)(nothing(), timeout=8.0)
        finally:
            over.set()


def end(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as found:
        next(call)
    return found.value.code().name, found.value.details()


@pytest.mark.parametrize("whose", ["watcher", "revoked"])
def test_a_stranger_is_refused_before_it_says_anything(whose: str, tmp_path: Path) -> None:
    files = certified("watcher") if whose == "watcher" else new_party(tmp_path, trial(), "bank")
    revoked = [] if whose == "watcher" else [seen("bank", files)]
    patient = Limits(handshake=30.0)

    async def talk() -> None:
        async with party("shop", {"bank": None, "shop": HERE}, patient, revoked=revoked) as shop:
            with silence_of(shop.address, files) as call:
                status, reason = await asyncio.to_thread(end, call)
        assert status == "PERMISSION_DENIED"
        assert ("nobody in the book of shop" if whose == "watcher" else "is revoked") in reason

    bounded(talk())


def test_of_one_name_two_streams_are_open_and_neither_waits_for_its_hello_for_long() -> None:
    limits, book = Limits(handshake=1.0), {"bank": None, "post": None, "shop": HERE}

    async def talk() -> None:
        async with party("shop", book, limits) as shop:
            assert shop._server is not None
            streams = shop._server._streams
            bank = frozenset({"bank"})
            own = certified("bank")
            with silence_of(shop.address, own) as one, silence_of(shop.address, own) as two:
                while streams[bank] < 2:
                    await asyncio.sleep(0.01)
                with silence_of(shop.address, own) as three:
                    said = await asyncio.to_thread(end, three)
                    assert said == ("UNAVAILABLE", "'bank' has 2 streams open already")
                async with party("post", {"post": None, "shop": shop.address}, limits) as post:
                    assert await tell(post, shop, [b"there"]) == [b"there"]
                for call in (one, two):
                    assert await asyncio.to_thread(end, call) == ("DEADLINE_EXCEEDED", "no Hello came")
            async with bank_party(shop.address, limits) as again:
                assert await tell(again, shop, [b"there"]) == [b"there"]

    bounded(talk())


def test_a_peer_that_does_not_read_our_hello_makes_room_for_one_that_does() -> None:
    """It has lost its way, or means harm; another process of its name may be well."""
    limits, said = Limits(handshake=1.0, patience=10.0), hello()
    files = [str(file) for file in vars(certified("bank")).values()]

    async def talk() -> None:
        async with shop_party(limits) as shop:
            with opener(str(shop.address), "tls", files)() as deaf:
                deaf.sendall(CLOSED + call(LINE, 1))
                deaf.sendall(frame(0, 0, 1, b"\0" + len(said).to_bytes(4, "big") + said))
                while not shop.link("bank")._opened:
                    await asyncio.sleep(0.01)
                async with bank_party(shop.address, limits) as bank:
                    assert await bank.reachable("shop", 5.0) and await bank.ping("shop") < 5
                await asyncio.to_thread(until_ended, deaf)

    bounded(talk())


def until_ended(connection: Any) -> None:
    connection.settimeout(5)
    with suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass


def test_a_peer_that_cuts_again_and_again_is_not_dialled_without_end() -> None:
    """It is there, brings something new each time, and ends the stream."""
    limits = Limits(streams=5)
    opened: list[float] = []

    async def cut(_: object, context: Any) -> None:
        opened.append(time.monotonic())
        asked = Frame.FromString(bytes(await context.read())).hello
        shop, bank = (certified(name).read(name) for name in ("shop", "bank"))
        said = {"party": "shop", "peer": "bank", "session": b"s" * 16, "peer_session": asked.session}
        await context.write(hello(**said, **proof.prove(shop, asked, b"s" * 16, leaf(bank))))
        await context.write(note(asked.received + 1, CONTROL))
        await context.read()  # that it came

    async def talk() -> None:
        server, port = await there(serve_line(cut))
        async with bank_party(f"127.0.0.1:{port}", limits):
            while len(opened) < 5:
                await asyncio.sleep(0.01)
            await asyncio.sleep(1.0)
        await there(server.stop(0))

    bounded(talk(), 60.0)
    assert len(opened) <= 7  # those at once, and then one in a while


# What was refused may be put right.


def test_a_party_is_tried_again_after_a_refusal_and_a_new_process_at_once() -> None:
    limits = Limits(patience=5.0, handshake=2.0, again=0.3)

    async def talk() -> None:
        async with shop_party(limits) as shop:
            ill = [hello(), b"\xff"]
            assert (await rogue(shop.address, ill, certified("bank")))[0] == "INVALID_ARGUMENT"
            status, reason = await rogue(shop.address, [hello()], certified("bank"))
            assert status == "INVALID_ARGUMENT" and "are no Frame" in reason  # it is the same process
            async with bank_party(shop.address, limits) as bank:
                assert await bank.reachable("shop", 5.0)

    bounded(talk())


# Health.


def health(address: str | None, credentials: Credentials | None, service: str = "") -> str:
    with dialling(address, credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            said = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=HANG)
        except grpc.RpcError as error:
            return str(error.code().name)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(said.status))


def test_whoever_has_a_certificate_may_ask_whether_a_party_serves() -> None:
    async def talk() -> None:
        healthy = True
        book = {"bank": None, "shop": HERE}
        async with party("shop", book, SOON, healthy=lambda: healthy) as shop:

            async def ask(*more: Any) -> str:
                return await asyncio.to_thread(health, shop.address, *more)

            watcher = certified("watcher")  # in nobody's book
            assert await ask(watcher) == "SERVING"
            assert await ask(watcher, "vfl.parties.v1.Parties") == "SERVING"
            assert await ask(watcher, "another") == "NOT_FOUND"
            healthy = False
            assert await ask(watcher) == "NOT_SERVING"
            assert await ask(None) == "UNAVAILABLE"

    bounded(talk())


# What an operator reads.


def test_the_log_says_who_came_who_left_and_who_was_refused_for_what(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def talk() -> None:
        async with shop_party(SOON) as shop, bank_party(shop.address, SOON) as bank:
            assert await bank.reachable("shop", 5.0)
            await rogue(shop.address, [hello()], certified("post"))
        async with bank_party(shop.address, SOON) as bank:
            assert "nothing listens there" in await told(bank, "shop")

    with structured("info"):
        bounded(talk())
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    found = {(line["party"], line["event"]): line for line in lines}
    for who in ("bank", "shop"):
        assert {(who, "peer connected"), (who, "peer lost")} <= found.keys()
    refused = found["shop", "stream refused"]
    assert refused["reason"].startswith("the certificate is for 'post, ") and ":" in refused["address"]
    assert "nothing listens there" in found["bank", "peer not reached"]["reason"]
    reasons = [line["reason"] for line in lines if line["event"] == "peer not reached"]
    assert all(a != b for a, b in itertools.pairwise(reasons)), reasons  # once, not at each dial
