"""Whoever is connected without a stream leaves in time, and first the oldest of the address that has most."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.network import door
from protocols.network.door import Address, Door, _crowded, _held, _Stranger, parse
from protocols.network.frames import Limits
from protocols.network.grpc import Grpc
from tests.support.network import bounded, certified, shop_party
from tests.support.stranger import opener

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is watched on Linux")
SHORT = Limits(handshake=0.4, patience=5.0)
LOCAL = bytes((127, 0, 0, 1))


async def ended(opened: socket.socket) -> None:
    """Until the other end has gone."""
    while await asyncio.to_thread(read, opened):
        pass


def read(opened: socket.socket) -> bytes:
    opened.settimeout(5)
    try:
        return opened.recv(1 << 16)
    except ConnectionError:
        return b""


WHERE = [("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]"), ("[::]", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")]


@pytest.mark.parametrize(("listens", "dialled"), WHERE)
def test_who_carries_no_stream_is_ended_and_who_does_is_not(listens: str, dialled: str) -> None:
    """Whichever way this machine and gRPC write an address."""
    if ":" in listens and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    files = [str(file) for file in vars(certified("watcher")).values()]

    async def talk() -> None:
        parties, own = {"bank": None, "shop": None}, certified("shop")
        async with Grpc("shop", parties, own, limits=SHORT, listen=f"{listens}:0") as shop:
            port = str(shop.address).rpartition(":")[2]
            book = {"bank": None, "shop": f"{dialled}:{port}"}
            async with Grpc("bank", book, certified("bank"), limits=SHORT) as bank:
                assert await bank.reachable("shop", 5.0)
                said = {"nothing": None, "half": None, "settings": files, "checks": files}
                for saying, shown in said.items():
                    opened = opener(f"{dialled.strip('[]')}:{port}", saying, shown)()
                    await ended(opened)
                    opened.close()
                assert await bank.ping("shop") < 5
                assert len(shop.link("bank")._opened) == 1  # all over the first stream

    bounded(talk())


def test_who_has_carried_a_stream_has_time_to_open_another() -> None:
    now = 0.0

    async def talk() -> None:
        nonlocal now
        keeper = Door("shop", 100, 5.0)
        keeper._loop = Clock(lambda: now)  # type: ignore[assignment]
        with listening() as (listener, dialler):
            keeper.port = listener.getsockname()[1]
            peer = f"ipv4:127.0.0.1:{dialler.getsockname()[1]}"
            accepted, _ = listener.accept()
            with accepted:
                keeper.look(now)
                with keeper.carrying(peer):
                    now = 100.0
                    keeper.look(now)
                now = 104.0
                keeper.look(now)
                dialler.setblocking(False)
                with pytest.raises(BlockingIOError):
                    dialler.recv(1)
                now = 105.5
                keeper.look(now)
                dialler.settimeout(5)
                assert dialler.recv(1) == b""

    asyncio.run(talk())


class Clock:
    def __init__(self, time: object) -> None:
        self.time = time


@contextmanager
def listening() -> Iterator[tuple[socket.socket, socket.socket]]:
    """One that listens, and one that has connected to it."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as dialler,
    ):
        yield listener, dialler


def test_the_connections_of_others_are_left_alone() -> None:
    async def talk() -> None:
        with listening() as (listener, dialler):
            accepted, _ = listener.accept()
            with accepted:
                keeper = Door("shop", 0, 0.0)
                keeper.port = listener.getsockname()[1] + 1
                keeper.look(1e9)
                dialler.sendall(b"x")
                assert accepted.recv(1) == b"x"

    asyncio.run(talk())


def test_a_descriptor_that_is_another_socket_by_now_is_not_touched() -> None:
    one, other = socket.socketpair()
    with one, other:
        known = os.fstat(one.fileno()).st_ino
        with _held(one.fileno(), known) as found:
            assert found.fileno() != one.fileno()
        files = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="closed"), _held(other.fileno(), known):
            pass
        assert len(os.listdir("/proc/self/fd")) == files


def strangers(hosts: Sequence[int]) -> list[_Stranger]:
    """One after another, from these."""
    return [
        _Stranger(0, 1000 + i, Address(bytes((10, 0, 0, host)), 2000 + i), 5.0 + i // 3)
        for i, host in enumerate(hosts)
    ]


@given(st.lists(st.integers(0, 4), max_size=40), st.data())
def test_the_oldest_of_the_address_that_has_most_goes_first(hosts: list[int], data: st.DataObject) -> None:
    """So nobody who has few loses one to somebody who has more."""
    present = strangers(hosts)
    gone = _crowded(data.draw(st.permutations(present)))[: data.draw(st.integers(0, len(hosts)))]
    left = [one for one in present if one not in gone]
    counts = Counter(one.address.host for one in left)
    for one in gone:
        assert counts[one.address.host] + 1 >= max(counts.values(), default=0)
        assert all(one.inode < other.inode for other in left if other.address.host == one.address.host)


def test_addresses_as_grpc_and_as_sockets_write_them() -> None:
    six = socket.inet_pton(socket.AF_INET6, "fe80::1")
    assert parse("ipv4:127.0.0.1:4711") == Address(LOCAL, 4711)
    assert parse("ipv6:%5B::1%5D:4711") == Address(bytes(15) + b"\1", 4711)
    assert parse("ipv6:[fe80::1%25eth0]:1") == parse("ipv6:%5Bfe80::1%25eth0%5D:1") == Address(six, 1)
    assert door._address("::ffff:127.0.0.1", 4711) == Address(LOCAL, 4711)
    assert Address(six, 1).origin == Address(six[:15] + b"\2", 9).origin != Address(LOCAL, 1).origin


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("a fault of ours")]
)
def test_whatever_a_look_fails_with_there_is_another(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, failures = Door.look, 0

    def fails(self: Door, now: float) -> bool:
        nonlocal failures
        failures += 1
        if failures < 5:
            raise error
        return look(self, now)

    monkeypatch.setattr(Door, "look", fails)

    async def talk() -> None:
        async with shop_party(SHORT) as shop:
            while failures < 5:
                await asyncio.sleep(0.01)
            files = [str(file) for file in vars(certified("watcher")).values()]
            with opener(str(shop.address), "checks", files)() as opened:
                await ended(opened)

    bounded(talk())


def test_no_descriptor_to_look_with_is_an_error_and_one_that_was_closed_is_not() -> None:
    for number, raised in ((errno.EMFILE, True), (errno.ENFILE, True), (errno.EBADF, False)):
        try:
            with door._while_there():
                raise OSError(number, "")
        except OSError:
            assert raised
        else:
            assert not raised


LIMITS = [((256, 1024), (1024, 1024)), ((1024, 1 << 20), (1 << 16, 1 << 20)), ((1 << 20, 1 << 20), None)]


@pytest.mark.parametrize(("is_", "becomes"), LIMITS)
def test_as_many_files_as_the_system_lets_us(
    monkeypatch: pytest.MonkeyPatch, is_: tuple[int, int], becomes: tuple[int, int] | None
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda what: is_)
    monkeypatch.setattr("resource.setrlimit", lambda what, limits: asked.append(limits))
    door.raise_limit()
    assert asked == ([becomes] if becomes else [])
    assert door.room(3) == min(1024, is_[0] * 3 // 4)
    assert door.room(300) == min(1200, is_[0] * 3 // 4)
