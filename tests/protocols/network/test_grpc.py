"""Two and three parties over real gRPC and TLS on loopback: what arrives, who is refused, and why."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import ConfigError, LineError, ProtocolError, VflError
from protocols.network.frames import CHUNK, OVERHEAD, Limits
from protocols.network.grpc import Grpc
from protocols.network.link import METHOD
from protocols.network.parties_pb2 import Chunk, Frame, Header
from protocols.network.tls import Credentials
from protocols.service.certificates import new_authority, new_party
from tests.support import ROOT
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
from tests.support.waiting import HANG

# What arrives.


def test_all_sizes_both_ways_in_order() -> None:
    async def talk() -> None:
        bodies = [bytes([i]) * size for i, size in enumerate((0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK))]
        async with shop_party() as shop, bank_party(shop.address) as bank:
            assert await tell(bank, shop, bodies) == bodies
            assert await tell(shop, bank, bodies) == bodies

    bounded(talk())


def test_an_envelope_says_what_it_said_in_process() -> None:
    async def talk() -> None:
        async with shop_party() as shop, bank_party(shop.address) as bank:
            sent = envelope("bank", "shop", b"some body", scope="fit/3")
            await bank.deliver(sent._replace(digest=b"what the sender claims counts for nothing"))
            assert await shop.collect("shop", "bank", "fit/3") == sent

    bounded(talk())


def test_of_two_that_can_dial_the_first_by_name_does() -> None:
    async def talk() -> None:
        async with (
            party("shop", {"bank": HERE, "shop": HERE}) as shop,
            party("bank", {"bank": HERE, "shop": shop.address}) as bank,
        ):
            assert await tell(shop, bank, [b"there"]) == [b"there"]
            said = [hello(party="shop", peer="bank")]
            status, reason = await rogue(bank.address, said, certified("shop"), named="bank")
            assert status == "FAILED_PRECONDITION" and "bank dials 'shop', not the other way" in reason

    bounded(talk())


def test_two_that_cannot_dial_have_no_line() -> None:
    async def talk() -> None:
        async with party("bank", {"bank": None, "shop": None}) as bank:
            with pytest.raises(ConfigError, match="neither bank nor shop can be dialled"):
                await bank.deliver(envelope("bank", "shop"))
            with pytest.raises(ConfigError, match=r"no line to 'shpo'.*did you mean 'shop'"):
                await bank.collect("bank", "shpo", "talk")

    bounded(talk())


def test_a_party_whose_loop_is_busy_still_takes_delivery() -> None:
    done, ready = threading.Event(), threading.Event()
    found: list[Any] = []

    async def busy() -> None:
        async with shop_party() as shop:
            found.append(shop.address)
            ready.set()
            # The whole loop stands still, as under a long computation.
            assert done.wait(HANG)
            found.append((await shop.collect("shop", "bank", "talk")).body)

    async def send() -> None:
        async with bank_party(found[0]) as bank:
            await bank.deliver(envelope("bank", "shop", b"x" * (3 * CHUNK)))
        # Leaving has waited for the acknowledgement.

    thread = threading.Thread(target=lambda: bounded(busy()))
    thread.start()
    try:
        assert ready.wait(HANG)
        bounded(send())
    finally:
        done.set()
        thread.join()
    assert found[1] == b"x" * (3 * CHUNK)


# Leaving and coming back.


def test_what_came_before_a_peer_left_is_there_and_more_is_not_awaited() -> None:
    async def talk() -> None:
        async with shop_party() as shop:
            async with bank_party(shop.address) as bank:  # leaves first
                waiting = asyncio.create_task(shop.collect("shop", "bank", "never"))
                await bank.deliver(envelope("bank", "shop", b"last words"))
            with pytest.raises(LineError, match="bank has finished and left"):
                await waiting
            assert (await shop.collect("shop", "bank", "talk")).body == b"last words"
            with pytest.raises(LineError, match="bank has finished and left"):
                await shop.collect("shop", "bank", "talk")
            with pytest.raises(LineError, match="bank has finished and left"):
                await shop.deliver(envelope("shop", "bank"))
            async with bank_party(shop.address) as bank:
                await bank.deliver(envelope("bank", "shop", b"back again", scope="another"))
            # Leaving has waited until shop had it.
            assert (await shop.collect("shop", "bank", "another")).body == b"back again"

    bounded(talk())


def test_a_process_that_came_back_fails_what_was_in_flight_and_the_old_one_is_refused() -> None:
    async def talk() -> None:
        async with shop_party(SOON) as shop, bank_party(shop.address, SOON) as bank:
            assert await tell(bank, shop, [b"first"]) == [b"first"]
            there = asyncio.create_task(shop.collect("shop", "bank", "talk"))
            here = asyncio.create_task(bank.collect("bank", "shop", "talk"))
            async with bank_party(shop.address, SOON):
                with pytest.raises(LineError, match="bank came back as another process"):
                    await there
                with pytest.raises(LineError, match="another process of bank has taken this one's place"):
                    await here
                assert shop.connected("bank")
                # As a transport of one job, it has lost that peer.
                with pytest.raises(LineError, match="bank came back as another process"):
                    await shop.deliver(envelope("shop", "bank"))

    bounded(talk())


def test_patience_ends_in_an_error_naming_peer_address_and_cause() -> None:
    async def talk() -> None:
        async with shop_party(SOON) as shop:
            address = shop.address
            for _ in range(2):  # when it is found, and for whoever asks later
                with pytest.raises(LineError, match=r"no connection to bank, which dials us") as lost:
                    await shop.collect("shop", "bank", "talk")
                assert lost.value.told == "no connection to bank; the reason is in its own log"
        async with bank_party(address, SOON) as bank:
            with pytest.raises(
                LineError, match=rf"no connection to shop, at {address}, for 0\.6 s: UNAVAILABLE"
            ):
                await bank.collect("bank", "shop", "talk")

    bounded(talk())


def test_what_was_not_acknowledged_is_an_error_on_leaving() -> None:
    limits = Limits(handshake=0.3)

    async def talk() -> None:
        async with bank_party("127.0.0.1:1", limits) as bank:
            await bank.deliver(envelope("bank", "shop"))

    with pytest.raises(LineError, match=r"not acknowledged within 0\.3 s: 1 messages to shop"):
        bounded(talk())


# Who is refused.


def trouble(shop: Credentials, bank: Credentials) -> str:
    """What bank is told when it dials a shop with these files."""

    async def talk() -> str:
        book = {"bank": None, "shop": HERE}
        async with (
            Grpc("shop", book, shop, limits=SOON) as served,
            Grpc("bank", {**book, "shop": served.address}, bank, limits=SOON) as transport,
        ):
            with pytest.raises(VflError) as found:
                await transport.collect("bank", "shop", "talk")
            return str(found.value)

    return bounded(talk())


def test_a_server_with_another_name_is_refused() -> None:
    said = trouble(unchecked(certified("post")), certified("bank"))
    assert "no connection to shop" in said and "has no certificate for shop" in said


def test_an_authority_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    new_authority(tmp_path)
    said = trouble(certified("shop"), new_party(tmp_path, tmp_path, "bank"))
    assert "no connection to shop" in said and "CERTIFICATE_VERIFY_FAILED" in said
    # The same on the other side: the server's authority does not know the dialler's.
    stranger = new_party(tmp_path, tmp_path, "shop")
    mixed = Credentials(certified("bank").authority, stranger.certificate, stranger.key)
    said = trouble(certified("shop"), unchecked(mixed))
    assert "no connection to shop" in said and "does it accept our certificate, and" in said


def test_an_expired_certificate_is_refused_at_both_ends(tmp_path: Path) -> None:
    over = new_party(tmp_path, trial(), "shop", days=1e-9)
    said = trouble(unchecked(over), certified("bank"))
    assert "no connection to shop" in said and "certificate has expired" in said
    with pytest.raises(ConfigError, match="this machine's clock says"):
        bounded(Grpc("shop", {"shop": HERE}, over).__aenter__())


def chunk(**changed: Any) -> bytes:
    said: dict[str, Any] = {"job": "j", "scope": "s", "kind": "k", "size": 4}
    header = Header(**{**said, **changed})
    raw: bytes = Frame(chunk=Chunk(number=1, header=header, data=b"body", last=True)).SerializeToString()
    return raw


LIES = {
    "another's name": ([hello()], "post", "PERMISSION_DENIED", "is for 'post.*Hello says 'bank'"),
    "not in the book": ([hello()], "watcher", "PERMISSION_DENIED", "nobody in the book of shop"),
    "another version": ([hello(version=9)], "bank", "FAILED_PRECONDITION", "speaks version 9"),
    "another peer": ([hello(peer="post")], "bank", "PERMISSION_DENIED", "from 'bank' to 'post'"),
    "no hello": ([chunk()], "bank", "INVALID_ARGUMENT", "must begin with a Hello"),
    "no frame": ([b"\xff" * 9], "bank", "INVALID_ARGUMENT", "are no Frame"),
    "no frame later": ([hello(), b"\xff" * 9], "bank", "INVALID_ARGUMENT", "are no Frame"),
    "two hellos": ([hello(), hello()], "bank", "INVALID_ARGUMENT", "hello in the middle"),
    "oversize": ([hello(), chunk(size=1 << 50)], "bank", "INVALID_ARGUMENT", "shop accepts 1073741824"),
    "large frame": ([hello(), b"\0" * (2 * CHUNK)], "bank", "RESOURCE_EXHAUSTED", "larger than max"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_a_peer_that_breaks_the_contract_is_told_why(case: str) -> None:
    frames, who, status, reason = LIES[case]

    async def talk() -> None:
        async with party("shop", {"bank": None, "post": None, "shop": HERE}, SOON) as shop:
            found = await rogue(shop.address, frames, certified(who))
            assert found[0] == status
            assert pytest.raises(Exception, match=reason).matches(Exception(found[1]))
            if who != "bank" or frames[0] != hello() or case == "large frame":
                return
            with pytest.raises(ProtocolError):
                await shop.collect("shop", "bank", "talk")

    bounded(talk())


def test_a_lie_about_a_name_leaves_the_line_of_that_name_alone() -> None:
    async def talk() -> None:
        async with shop_party() as shop, bank_party(shop.address) as bank:
            assert await tell(bank, shop, [b"before"]) == [b"before"]
            status, _ = await rogue(shop.address, [hello(), b"\xff"], certified("post"))
            assert status == "PERMISSION_DENIED"
            status, _ = await rogue(shop.address, [hello()], None)
            assert status == "UNAVAILABLE"
            assert await tell(bank, shop, [b"after"], "later") == [b"after"]

    bounded(talk())


def test_books_that_no_network_can_mean() -> None:
    def refused(match: str, name: str, book: dict[str, str | None], **more: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            Grpc(name, book, **more)

    sure: dict[str, Any] = {"credentials": certified("bank")}
    refused("not in its own book", "bank", {"shop": HERE}, **sure)
    refused("differ in case only", "bank", {"bank": HERE, "Bank": HERE}, **sure)
    refused("cannot name a party", "bank", {"bank": HERE, "a.b": HERE}, **sure)
    refused("is no address", "bank", {"bank": HERE, "shop": "nowhere"}, **sure)
    refused("pass credentials, or insecure", "bank", {"bank": HERE})
    refused("and not both", "bank", {"bank": HERE}, insecure=True, **sure)
    far: dict[str, str | None] = {"bank": HERE, "shop": "10.0.0.1:7443"}
    refused("loopback addresses only, not 10.0.0.1:7443", "bank", far, insecure=True)
    refused("loopback addresses only", "bank", {"bank": HERE}, insecure=True, listen="0.0.0.0:0")


def test_plain_text_on_this_machine_if_asked() -> None:
    async def talk() -> None:
        async with (
            Grpc("shop", {"bank": None, "shop": HERE}, insecure=True) as shop,
            Grpc("bank", {"bank": None, "shop": shop.address}, insecure=True) as bank,
        ):
            assert await tell(bank, shop, [b"plain"]) == [b"plain"]

    bounded(talk())


def test_a_port_in_use() -> None:
    async def talk() -> None:
        async with shop_party() as shop:
            with pytest.raises(ConfigError, match=rf"cannot serve on {shop.address}: is the port in use"):
                async with party("shop", {"bank": None, "shop": shop.address}):
                    pass

    bounded(talk())


def test_a_renewed_certificate_is_served_without_a_restart(tmp_path: Path) -> None:
    files = new_party(tmp_path, trial(), "shop")
    context = ssl.create_default_context(cafile=str(trial() / "authority.pem"))
    context.load_cert_chain(certified("bank").certificate, certified("bank").key)
    context.set_alpn_protocols(["h2"])

    async def served(address: str | None) -> bytes | None:
        host, _, port = str(address).rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="shop")
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        return shown  # type: ignore[no-any-return]

    async def talk() -> None:
        async with Grpc("shop", {"bank": None, "shop": HERE}, files) as shop:
            first = await served(shop.address)
            assert await served(shop.address) == first
            new_party(tmp_path, trial(), "shop", replace=True)
            second = await served(shop.address)
            assert second != first
            files.certificate.write_text("half a file")
            assert await served(shop.address) == second

    bounded(talk())


# What is bounded.


def test_deliver_waits_while_too_much_is_unacknowledged() -> None:
    limits = Limits(unacknowledged=3 * (CHUNK + OVERHEAD))

    async def talk() -> None:
        async with shop_party(limits) as shop:
            address = shop.address
        # Nobody is there, so nothing is acknowledged.
        async with bank_party(address, limits) as bank:
            for i in range(3):
                await bank.deliver(envelope("bank", "shop", b"x" * CHUNK, i))
            fourth = asyncio.create_task(bank.deliver(envelope("bank", "shop", b"y" * CHUNK, 3)))
            done, _ = await asyncio.wait({fourth}, timeout=0.2)
            assert not done
            book = {"bank": None, "shop": address}
            async with party("shop", book) as shop:
                await fourth
                took = [(await shop.collect("shop", "bank", "talk")).body[:1] for _ in range(4)]
                assert took == [b"x", b"x", b"x", b"y"]

    bounded(talk())


def test_a_hello_that_acknowledges_lets_a_deliver_go_on() -> None:
    """The acknowledgement of what came before a cut may come with the next stream only."""

    def speak(address: str | None) -> bytes:
        session, body = b"", b""
        with dialling(address, certified("bank")) as channel:
            for received in (0, 1):
                said = queue.SimpleQueue[bytes | None]()  # open until None, or the shop would end the stream
                said.put(hello(session=b"r" * 16, peer_session=session, received=received, room=1 << 30))
                call = channel.stream_stream(METHOD)(iter(said.get, None), timeout=HANG)
                session = Frame.FromString(next(call)).hello.session
                body = Frame.FromString(next(call)).chunk.data
                call.cancel()
                said.put(None)
        return body

    async def talk() -> None:
        async with shop_party(Limits(unacknowledged=CHUNK, handshake=2.0)) as shop:
            await shop.deliver(envelope("shop", "bank", bytes(CHUNK)))
            second = asyncio.create_task(shop.deliver(envelope("shop", "bank", b"second", 1)))
            heard = await asyncio.to_thread(speak, shop.address)
            await second
            assert heard == b"second"

    with pytest.raises(LineError, match="not acknowledged"):  # for who spoke as bank is gone
        bounded(talk())


def test_a_line_that_is_idle_is_not_cut_for_its_pings() -> None:
    """gRPC's servers do that after some four pings, if not told how often they may come."""

    async def talk() -> None:
        limits = Limits(keepalive=0.2)
        async with shop_party(limits) as shop, bank_party(shop.address, limits) as bank:
            assert await bank.reachable("shop", 5.0)
            await asyncio.sleep(5.0)
            assert len(shop.link("bank")._opened) == 1

    bounded(talk())


def test_a_role_that_is_behind_is_not_flooded_and_one_that_waits_is_not_starved() -> None:
    limits = Limits(unacknowledged=2 * CHUNK, uncollected=4 * CHUNK)

    async def talk() -> None:
        async with shop_party(limits) as shop, bank_party(shop.address, limits) as bank:

            async def send() -> None:
                for i in range(40):
                    await bank.deliver(envelope("bank", "shop", b"x" * CHUNK, i))
                await bank.deliver(envelope("bank", "shop", b"what it waits for", scope="other"))

            sending = asyncio.create_task(send())
            done, _ = await asyncio.wait({sending}, timeout=0.4)
            held = shop.link("bank").line.into.uncollected[False].held
            assert not done and 4 * CHUNK < held <= 5 * CHUNK
            assert (await shop.collect("shop", "bank", "other")).body == b"what it waits for"
            await sending
            for _ in range(40):
                await shop.collect("shop", "bank", "talk")

    bounded(talk())


def test_two_that_both_send_before_they_read_do_not_wait_for_ever() -> None:
    limits = Limits(unacknowledged=2 * CHUNK, uncollected=2 * CHUNK)

    async def one(me: Grpc, peer: str) -> None:
        for i in range(20):
            await me.deliver(envelope(me.name, peer, bytes(CHUNK), i))
        for _ in range(20):
            await me.collect(me.name, peer, "talk")

    async def talk() -> None:
        async with shop_party(limits) as shop, bank_party(shop.address, limits) as bank:
            await asyncio.gather(one(shop, "bank"), one(bank, "shop"))

    bounded(talk())


def test_what_is_held_has_a_limit_even_for_a_role_that_waits() -> None:
    limits = Limits(held=8 * CHUNK)

    async def talk() -> None:
        async with shop_party(limits) as shop, bank_party(shop.address) as bank:
            waiting = asyncio.create_task(shop.collect("shop", "bank", "other"))
            for i in range(9):
                await bank.deliver(envelope("bank", "shop", bytes(CHUNK), i))
            with pytest.raises(ProtocolError, match="that its role has not collected"):
                await waiting
            with pytest.raises(ProtocolError, match=r"shop refuses: RESOURCE_EXHAUSTED"):
                await bank.collect("bank", "shop", "talk")

    bounded(talk())


def test_mail_to_ever_more_scopes_is_refused() -> None:
    limits = Limits(scopes=20)

    async def talk() -> None:
        async with shop_party(limits) as shop, bank_party(shop.address) as bank:
            waiting = asyncio.create_task(shop.collect("shop", "bank", "other"))
            for i in range(21):
                await bank.deliver(envelope("bank", "shop", scope=f"s{i}"))
            with pytest.raises(ProtocolError, match="more than 20 scopes"):
                await waiting

    bounded(talk())


def test_a_scope_that_is_left_frees_its_mail() -> None:
    async def talk() -> None:
        async with shop_party() as shop, bank_party(shop.address) as bank:
            await bank.deliver(envelope("bank", "shop", b"x" * 1000, scope="left"))
            assert await tell(bank, shop, [b"marker"]) == [b"marker"]
            shop.close("shop", "left")
            await bank.deliver(envelope("bank", "shop", b"late", 1, scope="left"))
            assert await tell(bank, shop, [b"marker"], "next") == [b"marker"]
            flow = shop.link("bank").line.into.uncollected[False]
            assert flow.entered == flow.left > 0
            assert not shop._open["bank"]

    bounded(talk())


def test_a_message_above_the_limit_is_refused_where_it_is_sent() -> None:
    async def talk() -> None:
        async with bank_party("127.0.0.1:1", Limits(envelope=10)) as bank:
            with pytest.raises(ConfigError, match=r"test\.Word/1 to shop is 11 bytes, above the limit of 10"):
                await bank.deliver(envelope("bank", "shop", bytes(11)))

    bounded(talk())


def test_no_payload_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    canary = b"canary-7f3a9c"

    async def talk() -> None:
        async with shop_party(SOON) as shop, bank_party(shop.address, SOON) as bank:
            assert await tell(bank, shop, [canary]) == [canary]
            await rogue(shop.address, [hello(), canary], certified("bank"))

    with caplog.at_level(logging.DEBUG):
        bounded(talk())
    assert "peer connected" in caplog.text
    assert canary.decode() not in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are of Unix")
def test_a_fork_while_a_connection_is_open_harms_no_child() -> None:
    """As a DataLoader forks its workers. In a process of its own: gRPC looks at its settings once."""
    code = """
import os
import protocols.network  # as whoever connects does, before gRPC itself
from tests.support.network import bank_party, bounded, shop_party

async def talk():
    async with shop_party() as shop, bank_party(shop.address) as bank:
        assert await bank.reachable("shop", 30.0)
        codes = []
        for _ in range(20):
            child = os.fork()
            if not child:
                os._exit(0)
            codes.append(os.waitpid(child, 0)[1])
        assert await bank.reachable("shop", 30.0)
        print(codes)

bounded(talk())
"""
    known = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=known, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == str([0] * 20), done.stdout + done.stderr
