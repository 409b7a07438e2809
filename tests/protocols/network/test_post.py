"""Many jobs on one line: none sees another's mail, and none outlives the process that it was talking to."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any

import pytest

from protocols.errors import ConfigError, LineError
from protocols.network.frames import CHUNK, CONTROL, OVERHEAD, Limits
from protocols.network.grpc import Change, Grpc, network_loop
from protocols.network.post import Post
from protocols.wire.transport import Envelope
from tests.support.network import SOON, bank_party, bounded, envelope, party, shop_party
from tests.support.waiting import HANG

BOOK: dict[str, str | None] = {"bank": None, "shop": "127.0.0.1:0"}


def mail(job: str, body: bytes = b"body", sequence: int = 0, **more: Any) -> Envelope:
    said: dict[str, Any] = {"sender": "bank", "receiver": "shop", **more}
    return envelope(body=body, sequence=sequence, **said)._replace(job=job)


async def heard(post: Post, peer: str = "bank", scope: str = "talk") -> bytes:
    me = "shop" if peer == "bank" else "bank"
    return (await post.collect(me, peer, scope)).body


def held(transport: Grpc, peer: str, control: bool = False) -> int:
    return transport.link(peer).line.into.uncollected[control].held


async def nothing_held(transport: Grpc, peer: str) -> None:
    while held(transport, peer) or held(transport, peer, True):
        await asyncio.sleep(0.01)


# Jobs apart.


def test_jobs_with_the_same_scopes_after_and_beside_one_another_do_not_clash() -> None:
    async def talk() -> None:
        async with shop_party() as shop, bank_party(shop.address) as bank:
            rooms = [CONTROL, "one", "two"]
            there, here = [shop.for_job(job) for job in rooms], [bank.for_job(job) for job in rooms]
            for i in range(3):
                for job, post in zip(rooms, here, strict=True):
                    await post.deliver(mail(job, f"{job} {i}".encode(), i))
            for job, post in zip(rooms[::-1], there[::-1], strict=True):
                assert [await heard(post) for _ in range(3)] == [f"{job} {i}".encode() for i in range(3)]
            shop.end_job("one")
            bank.end_job("one")
            # Another attempt under another name, with the same scope.
            async with shop.for_job("one again") as again:
                await bank.for_job("one again").deliver(mail("one again", b"anew"))
                assert await heard(again) == b"anew"
            await nothing_held(shop, "bank")

    bounded(talk())


def test_a_role_with_much_mail_gives_way_to_others() -> None:
    """It waits for none of it, so that nothing else would make it."""
    pieces, turns = 640, 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def talk() -> None:
        async with shop_party() as shop, bank_party(shop.address) as bank:
            there, here = shop.for_job("job"), bank.for_job("job")
            for i in range(pieces):
                await here.deliver(mail("job", sequence=i))
            while held(shop, "bank") < pieces * OVERHEAD:
                await asyncio.sleep(0.01)
            turning = asyncio.create_task(turn())
            await asyncio.sleep(0)
            for _ in range(pieces):
                await heard(there)
            turning.cancel()
            assert turns >= pieces / 64

    bounded(talk())


def test_mail_for_a_job_that_is_not_open_is_counted_and_nothing_of_it_is_kept() -> None:
    async def talk() -> None:
        async with shop_party() as shop, bank_party(shop.address) as bank:
            there, here = shop.for_job("open"), bank.for_job("open")
            closed = bank.for_job("closed")
            for i in range(5):
                await closed.deliver(mail("closed", bytes(CHUNK + 1), i))
            await here.deliver(mail("open", b"kept"))
            assert await heard(there) == b"kept"
            assert shop.discarded == {"bank": 5} and held(shop, "bank") == 0

    bounded(talk())


def test_a_job_that_ends_frees_its_mail_and_says_so_to_whoever_still_waits() -> None:
    async def talk() -> None:
        async with shop_party() as shop, bank_party(shop.address) as bank:
            there, here = shop.for_job("job"), bank.for_job("job")
            await here.deliver(mail("job", b"read"))
            await here.deliver(mail("job", bytes(1000), 1))
            assert await heard(there) == b"read"
            waiting = asyncio.create_task(heard(there, scope="never"))
            await asyncio.sleep(0)
            shop.end_job("job")
            with pytest.raises(ConfigError, match="job 'job' has ended; 'never' still waited for bank"):
                await waiting
            with pytest.raises(ConfigError, match="job 'job' has ended"):
                await there.collect("shop", "bank", "talk")
            with pytest.raises(ConfigError, match="job 'job' has ended"):
                await there.deliver(mail("job", sender="shop", receiver="bank"))
            await nothing_held(shop, "bank")
            await here.deliver(mail("job", bytes(1000), 2))
            while not shop.discarded["bank"]:
                await asyncio.sleep(0.01)
            assert held(shop, "bank") == 0 and not shop._open["bank"]

    bounded(talk())


def test_what_comes_too_late_is_told_and_what_comes_twice_is_not() -> None:
    async def talk() -> None:
        late: list[tuple[str, int]] = []
        async with shop_party() as shop, bank_party(shop.address) as bank:
            there = shop.for_job("job", lambda e: late.append((e.scope, e.sequence)))
            here = bank.for_job("job")

            async def until(sequence: int) -> None:
                """`there` has all that was sent before."""
                await here.deliver(mail("job", scope="sync", sequence=sequence))
                await heard(there, scope="sync")

            for sequence in (0, 0, 1):
                await here.deliver(mail("job", sequence=sequence))
            await heard(there)
            await here.deliver(mail("job"))
            await until(0)
            assert late == []
            there.close("shop", "talk")
            assert late == [("talk", 1)]  # nobody had taken it
            await here.deliver(mail("job", sequence=2))
            await until(1)
            assert late[1:] == [("talk", 2)]
            await here.deliver(mail("job", scope="unread"))
            await until(2)
            there.finish()
            assert late[2:] == [("unread", 0)]
            await here.deliver(mail("job", scope="new"))
            while len(late) < 4:
                await asyncio.sleep(0.01)
            assert late[3:] == [("new", 0)] and held(shop, "bank") == 0

    bounded(talk())


def test_a_thousand_jobs_leave_nothing_behind() -> None:
    async def talk() -> None:
        async with shop_party() as shop, bank_party(shop.address) as bank:

            async def one(job: str) -> None:
                async with shop.for_job(job) as there, bank.for_job(job) as here:
                    await here.deliver(mail(job))
                    await here.deliver(mail(job, scope="unread"))
                    await heard(there)

            for i in range(20):
                await one(f"warm {i}")
            gc.collect()
            before = len(gc.get_objects())
            for i in range(300):
                await one(f"job {i}")
            await nothing_held(shop, "bank")
            gc.collect()
            assert len(gc.get_objects()) - before < 300
            assert len(shop._posts) == len(bank._posts) == 0

    bounded(talk())


def test_what_a_grpc_of_many_jobs_is_not_asked_for() -> None:
    async def talk() -> None:
        async with shop_party() as shop:
            post = shop.for_job("job")
            with pytest.raises(ConfigError, match="job 'job' is open already"):
                shop.for_job("job")
            for name in ("x" * 129, "two\nlines"):
                with pytest.raises(ConfigError, match="cannot name a job"):
                    shop.for_job(name)
            with pytest.raises(ConfigError, match="use what for_job returns"):
                await shop.collect("shop", "bank", "talk")
            with pytest.raises(ConfigError, match="is of job 'other'; this is the post of 'job'"):
                await post.deliver(mail("other", sender="shop", receiver="bank"))
            with pytest.raises(ConfigError, match="this is shop's transport, not bank's"):
                await post.collect("bank", "shop", "talk")

    bounded(talk())


def test_parties_may_live_on_the_network_s_own_loop() -> None:
    """Then nothing is handed over between threads: mail, room, failures and changes go the short way."""
    changes: list[Change] = []
    limits = Limits(patience=0.6, handshake=2.0, unacknowledged=CHUNK, uncollected=2 * CHUNK)

    async def talk() -> None:
        book = {"bank": None, "shop": "127.0.0.1:0"}
        async with party("shop", book, limits, on_change=changes.append) as shop:
            there = shop.for_job("job")
            async with bank_party(shop.address, limits) as bank:
                here = bank.for_job("job")

                async def send() -> None:
                    for i in range(9):
                        await here.deliver(mail("job", bytes(CHUNK), i))

                sending = asyncio.create_task(send())
                for _ in range(9):
                    assert await heard(there) == bytes(CHUNK)
                await sending
                assert await bank.reachable("shop", 1.0) and await bank.ping("shop") < 5
                waiting = asyncio.create_task(heard(there))
                await asyncio.sleep(0)
            with pytest.raises(LineError, match="bank has finished and left"):
                await waiting
            await asyncio.sleep(0)
        assert [change.state for change in changes] == ["connected", "left"]

    bounded_there(talk())


def bounded_there(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run_coroutine_threadsafe(work, network_loop()).result(HANG)


# Bounds over all jobs.


def test_what_is_held_for_all_jobs_together_is_bounded() -> None:
    limits = Limits(unacknowledged=CHUNK, uncollected=4 * CHUNK)

    async def talk() -> None:
        async with shop_party(limits) as shop, bank_party(shop.address, limits) as bank:
            jobs = [f"job {i}" for i in range(4)]
            there = {job: shop.for_job(job) for job in jobs}
            here = {job: bank.for_job(job) for job in jobs}

            async def send(job: str) -> None:
                for i in range(5):
                    await here[job].deliver(mail(job, bytes(CHUNK), i))

            sending = [asyncio.create_task(send(job)) for job in jobs]
            done, _ = await asyncio.wait(sending, timeout=0.5, return_when=asyncio.ALL_COMPLETED)
            assert len(done) < 4 and held(shop, "bank") == 4 * (CHUNK + OVERHEAD)
            shop.end_job("job 0")  # frees what it held
            for job in jobs[1:]:
                for _ in range(5):
                    await heard(there[job])
            await asyncio.gather(*sending)

    bounded(talk())


def test_mail_about_jobs_passes_a_job_that_is_behind() -> None:
    limits = Limits(unacknowledged=2 * CHUNK, uncollected=2 * CHUNK)

    async def talk() -> None:
        async with shop_party(limits) as shop, bank_party(shop.address, limits) as bank:
            control, _ = shop.for_job(CONTROL), shop.for_job("job")
            here, job = bank.for_job(CONTROL), bank.for_job("job")

            async def send() -> None:
                for i in range(40):
                    await job.deliver(mail("job", bytes(CHUNK), i))

            waiting = asyncio.create_task(heard(control))
            sending = asyncio.create_task(send())
            done, _ = await asyncio.wait({sending}, timeout=0.4)
            # That somebody waits for mail about jobs gives no job room.
            assert not done and held(shop, "bank") <= 3 * (CHUNK + OVERHEAD)
            await here.deliver(mail(CONTROL, b"cancel"))
            assert await waiting == b"cancel"
            shop.end_job("job")
            await sending

    bounded(talk())


def test_mail_about_jobs_is_small() -> None:
    async def talk() -> None:
        async with shop_party() as shop, bank_party(shop.address) as bank:
            there, here = shop.for_job(CONTROL), bank.for_job(CONTROL)
            await here.deliver(mail(CONTROL, bytes(CHUNK)))
            assert await heard(there) == bytes(CHUNK)
            with pytest.raises(ConfigError, match="is 1048577 bytes, above the limit of 1048576; send it in"):
                await here.deliver(mail(CONTROL, bytes(CHUNK + 1)))

    bounded(talk())


# Peers that come and go.


@pytest.mark.parametrize("again_by", ["the one that dials", "the one that is dialled"])
def test_a_peer_that_came_back_is_lost_to_open_jobs_and_there_for_new_ones(again_by: str) -> None:
    """While the other process lives on; the conversation about jobs goes on with whoever is there."""
    changes: list[Change] = []

    async def talk() -> None:
        async with shop_party(SOON) as first:
            address = first.address
        book = {"bank": None, "shop": address}
        name, peer = ("bank", "shop") if again_by == "the one that dials" else ("shop", "bank")

        def lives() -> Grpc:
            return party(peer, book, SOON, on_change=changes.append)

        async with lives() as stays:
            control, old = stays.for_job(CONTROL), stays.for_job("old")
            gone = party(name, book, SOON)
            await gone.__aenter__()
            there = gone.for_job("old")
            await there.deliver(mail("old", sender=name, receiver=peer))
            await old.collect(peer, name, "talk")
            waits = [asyncio.create_task(p.collect(peer, name, "more")) for p in (control, old)]
            await asyncio.sleep(0)
            await crash(gone)
            async with party(name, book, SOON) as again:
                anew, note = again.for_job("new"), again.for_job(CONTROL)
                for wait in waits:
                    with pytest.raises(LineError, match=f"{name} came back as another process"):
                        await wait
                with pytest.raises(LineError, match=f"{name} came back as another process"):
                    await old.collect(peer, name, "more")
                fresh = stays.for_job("new")
                await anew.deliver(mail("new", b"new", sender=name, receiver=peer))
                assert (await fresh.collect(peer, name, "talk")).body == b"new"
                await fresh.deliver(mail("new", b"back", sender=peer, receiver=name))
                assert (await anew.collect(name, peer, "talk")).body == b"back"
                await note.deliver(mail(CONTROL, b"hello again", sender=name, receiver=peer))
                assert (await control.collect(peer, name, "talk")).body == b"hello again"
            with pytest.raises(LineError, match=f"{name} has finished and left"):
                await fresh.collect(peer, name, "more")
        states = [change.state for change in changes if change.state != "lost"]
        assert states == ["connected", "restarted", "connected", "left"]

    bounded(talk())


async def crash(transport: Grpc) -> None:
    """What is left of a process that was killed: nothing, and no word of it."""

    async def die() -> None:
        for task in transport._dials:
            task.cancel()
        for link in transport._links.values():
            link.stop()
            if link._reader is not None:
                link._reader.cancel()
        if transport._server is not None:
            await transport._server._server.stop(0)

    await transport._run(die())


def test_in_the_conversation_about_jobs_a_peer_may_begin_to_count_again() -> None:
    async def talk() -> None:
        async with shop_party(SOON) as shop:
            there = shop.for_job(CONTROL)
            for life in range(3):
                async with bank_party(shop.address, SOON) as bank:
                    post = bank.for_job(CONTROL)
                    for i in range(2):
                        await post.deliver(mail(CONTROL, b"%d %d" % (life, i), i))
                assert [await heard(there) for _ in range(2)] == [b"%d %d" % (life, i) for i in range(2)]

    bounded(talk())


def test_whether_a_peer_is_there_since_when_and_how_far() -> None:
    async def talk() -> None:
        async with shop_party(SOON) as shop:
            assert not shop.connected("bank") and not await shop.reachable("bank", 0.05)
            assert shop.peer("bank") == (False, None, "it never dialled")
            with pytest.raises(LineError, match="no connection to bank: it never dialled"):
                await shop.ping("bank")
            meeting = asyncio.create_task(shop.reachable("bank", 5.0))
            async with bank_party(shop.address, SOON) as bank:
                assert await meeting and await bank.reachable("shop", 5.0)
                for transport, peer in ((bank, "shop"), (shop, "bank")):
                    assert 0 < await transport.ping(peer) < 5
                    there = transport.peer(peer)
                    assert there.connected and there.heard is not None and 0 <= there.heard < 5
                    assert there.cause == ""
            while shop.connected("bank"):
                await asyncio.sleep(0.01)
            with pytest.raises(ConfigError, match="no line to 'post'"):
                shop.connected("post")

    bounded(talk())
