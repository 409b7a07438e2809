"""The mailbox restores order, loses nothing it should keep, and keeps nothing it should free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from math import inf, nan
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError, StallError
from protocols.federation import simulate
from protocols.party import Coordinator, Party
from protocols.wire.clock import run_virtual
from protocols.wire.message import Message
from protocols.wire.transport import Envelope, Local, Mailbox, Names, Network

T = TypeVar("T")


class Parcel(Message, reveals="test: a number"):
    n: int


def envelope(sequence: int, scope: str = "s", sender: str = "a") -> Envelope:
    return Envelope("job", sender, "b", scope, sequence, "tests.Parcel/1", 1, b"", b"secret %d" % sequence)


def play(main: Coroutine[Any, Any, T], on_stall: Callable[[], None] = lambda: None) -> T:
    return run_virtual(main, on_stall)[0]


@given(
    st.lists(st.integers(0, 7), max_size=30).map(lambda extra: [*range(8), *extra]).flatmap(st.permutations)
)
def test_order_is_restored_and_duplicates_are_dropped(arrivals: list[int]) -> None:
    async def main() -> list[int]:
        box = Mailbox("b")
        for sequence in arrivals:
            box.put(envelope(sequence))
        got = [(await box.take("a", "s")).sequence for _ in range(8)]
        assert not box._lines["s"]["a"].held
        return got

    assert play(main()) == list(range(8))


def test_lines_and_scopes_do_not_mix() -> None:
    async def main() -> None:
        box = Mailbox("b")
        for sender in "ac":
            for scope in ("s", "s/1", "s1"):
                box.put(envelope(0, scope, sender))
        for sender in "ca":
            for scope in ("s1", "s", "s/1"):
                e = await box.take(sender, scope)
                assert (e.sender, e.scope) == (sender, scope)

    play(main())


def test_late_mail_of_a_scope_that_was_left_is_discarded() -> None:
    async def main() -> None:
        box = Mailbox("b")
        box.put(envelope(1, "fit/1"))
        box.put(envelope(0, "fit/10"))
        box.close("fit/1")
        for scope in ("fit/1", "fit/1/deep"):
            box.put(envelope(0, scope))
            with pytest.raises(ConfigError, match="was left before"):
                await box.take("a", scope)
        assert list(box._lines) == ["fit/10"]
        assert (await box.take("a", "fit/10")).scope == "fit/10"
        box.close("fit")
        box.put(envelope(0, "fit/11"))
        assert not box._lines

    play(main())


def test_memory_stays_flat_over_rounds() -> None:
    box = Mailbox("b")
    for r in range(1000):
        for scope in (f"fit/{r}", f"fit/{r}/inner"):
            box.put(envelope(0, scope))
        box.put(envelope(5, f"fit/{r}"))
        box.close(f"fit/{r}/inner")
        box.close(f"fit/{r}")
        box.put(envelope(1, f"fit/{r}"))
        assert not box._lines
        assert sum(len(names) for names in box._closed.values()) == 1
    box.close("fit")
    assert len(box._closed) == 1


def test_a_run_of_many_rounds_leaves_no_mail() -> None:
    boxes: list[Mailbox] = []

    async def role(me: Coordinator) -> None:
        async with me.within("fit") as fit:
            for r in range(200):
                async with fit.within(r) as at:
                    await at.broadcast(Parcel(n=r))
                    await at.gather(Parcel, deadline=1.0)
                    await at.send(me.roster[0], Parcel(n=r))  # nobody asks for this one
            boxes.extend(b for b in _boxes(me) if b not in boxes)
            assert all(len(b._lines) <= 2 for b in boxes)
            assert all(sum(map(len, b._closed.values())) <= 1 for b in boxes)
            assert len(fit._opened or ()) == 1

    simulate({"a": role, "b": role})
    assert len(boxes) == 2


def _boxes(me: Party) -> list[Mailbox]:
    ledger: Any = me.desk.ledger
    return list(ledger._inner._boxes.values())


@given(st.permutations([str(n) for n in range(12)] + ["007", "-1", "x", "", "²"]))
def test_names_is_a_set(words: list[str]) -> None:
    names, kept = Names(), set()
    for word in words:
        assert (word in names) is (word in kept)
        names.add(word)
        names.add(word)
        kept.add(word)
        assert all(w in names for w in kept)
    assert "12" not in names and "7 " not in names and "٣" not in names


@pytest.mark.parametrize("again", ["fit", "1", 1])
def test_a_scope_name_used_twice_is_an_error(again: str | int) -> None:
    async def role(me: Coordinator) -> None:
        for name in ("fit", 1, again):
            async with me.within(name):
                pass

    with pytest.raises(ConfigError, match=r"^a: within\('?(fit|1)'?\) in '': needs a new name"):
        simulate({"a": role})


@pytest.mark.parametrize("name", ["", "a/b", "/"])
def test_a_scope_name_is_one_step(name: str) -> None:
    async def role(me: Coordinator) -> None:
        me.within(name)

    with pytest.raises(ConfigError, match="without slashes"):
        simulate({"a": role})


def test_a_cancelled_wait_loses_no_message() -> None:
    async def main() -> None:
        for arrives_first in (True, False):
            box = Mailbox("b")
            task = asyncio.ensure_future(box.take("a", "s"))
            await asyncio.sleep(0)
            if arrives_first:
                box.put(envelope(0))
                task.cancel()
            else:
                task.cancel()
                box.put(envelope(0))
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not box._lines["s"]["a"].waiters
            assert (await box.take("a", "s")).sequence == 0

    play(main())


def test_two_waiters_on_one_line_each_get_one_message_in_order() -> None:
    async def main() -> list[int]:
        box = Mailbox("b")
        tasks = [asyncio.ensure_future(box.take("a", "s")) for _ in range(3)]
        await asyncio.sleep(0)
        for sequence in range(3):
            box.put(envelope(sequence))
            await asyncio.sleep(0)
        return [(await task).sequence for task in tasks]

    assert sorted(play(main())) == [0, 1, 2]


@pytest.mark.parametrize("faulty", ["send", "recv"])
def test_an_unknown_party_is_named_with_the_nearest(faulty: str) -> None:
    async def role(me: Coordinator) -> None:
        if faulty == "send":
            await me.send("serber", Parcel(n=1))
        await me.recv("serber", Parcel)

    async def idle(me: Coordinator) -> None:
        pass

    with pytest.raises(
        ConfigError, match=r"client: no party 'serber' .*client, server; did you mean 'server'\?"
    ):
        simulate({"client": role, "server": idle})


def test_a_party_may_write_to_itself() -> None:
    async def role(me: Coordinator) -> int:
        await me.send("a", Parcel(n=7))
        return (await me.recv("a", Parcel)).n

    assert simulate({"a": role}).results == {"a": 7}


def test_an_envelope_does_not_show_its_body() -> None:
    assert "secret" not in repr(envelope(3)) and "9" not in repr(envelope(3)).replace("bytes", "")
    assert repr(envelope(3)) == "Envelope(a -> b in 's' #3, tests.Parcel/1, 8 bytes)"


@pytest.mark.parametrize(
    "settings",
    [
        {"latency": -1.0},
        {"latency": nan},
        {"latency": inf},
        {"bandwidth": 0.0},
        {"bandwidth": nan},
        {"speed": {"a": 0.0}},
        {"latency": {("a", "b"): -1.0}},
    ],
)
def test_a_network_that_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected latency"):
        Network(**settings)


def test_a_network_that_lacks_a_pair_or_a_party_says_so() -> None:
    network = Network({("a", "b"): 1.0}, speed={"a": 1.0})
    assert (network.delay("a", "b"), network.seconds("a", 3.0)) == (1.0, 3.0)
    with pytest.raises(ConfigError, match="no latency from b to a"):
        network.delay("b", "a")
    with pytest.raises(ConfigError, match="no speed of b"):
        network.seconds("b", 1.0)


def test_a_stall_of_many_names_eight_and_counts_the_rest() -> None:
    local = Local([str(i) for i in range(12)])

    async def main() -> None:
        waits = [asyncio.ensure_future(local.collect(str(i), "0", "s")) for i in range(12)]
        done = await asyncio.gather(*waits, return_exceptions=True)
        assert all(isinstance(error, StallError) for error in done)
        assert str(done[0]).count("waits for 0 in 's'") == 8 and str(done[0]).endswith("and 4 more")

    play(main(), local.on_stall)
