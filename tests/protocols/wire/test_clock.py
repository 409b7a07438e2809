"""Virtual time is exact, takes no wall time, and ends every run with a clear word."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError, ProtocolError, StallError
from protocols.federation import simulate
from protocols.party import Coordinator, Run
from protocols.wire.clock import run_virtual
from protocols.wire.codec import encode
from protocols.wire.message import Message
from protocols.wire.transport import Network
from tests.support.waiting import HANG

Role = Callable[[Coordinator], Coroutine[Any, Any, Any]]


class Load(Message, reveals="test: a number of bytes"):
    raw: bytes = b""


def size(raw: int) -> int:
    return len(encode(Load(raw=bytes(raw))))


def ping_pong(times: int, raw: int, flops: float) -> dict[str, Role]:
    async def ping(me: Coordinator) -> None:
        for _ in range(times):
            await me.compute(int, cost=flops)
            await me.send("pong", Load(raw=bytes(raw)))
            await me.recv("pong", Load)

    async def pong(me: Coordinator) -> None:
        for _ in range(times):
            await me.send("ping", await me.recv("ping", Load))

    return {"ping": ping, "pong": pong}


def star(clients: int, rounds: int, raw: int) -> dict[str, Role]:
    async def server(me: Coordinator) -> None:
        for r in range(rounds):
            async with me.within(r) as at:
                await at.broadcast(Load(raw=bytes(raw)))
                await at.gather(Load)

    async def client(me: Coordinator) -> None:
        for r in range(rounds):
            async with me.within(r) as at:
                await at.recv("server", Load)
                await at.compute(int, cost=5e9)
                await at.send("server", Load())

    return {"server": server, **{f"c{i}": client for i in range(clients)}}


def chain(length: int) -> dict[str, Role]:
    def link(i: int) -> Role:
        async def role(me: Coordinator) -> None:
            if i:
                await me.recv(f"p{i - 1}", Load)
            await me.compute(int, cost=1e9 * i)
            if i < length - 1:
                await me.send(f"p{i + 1}", Load(raw=bytes(100 * i)))

        return role

    return {f"p{i}": link(i) for i in range(length)}


def test_virtual_seconds_take_no_wall_time() -> None:
    start = perf_counter()
    _, seconds = run_virtual(asyncio.sleep(365 * 86_400.0))
    assert seconds == pytest.approx(365 * 86_400) and perf_counter() - start < 1


def test_tiny_steps_on_top_of_much_time_still_pass() -> None:
    async def main() -> float:
        await asyncio.sleep(1e9)
        for _ in range(10):
            await asyncio.sleep(1e-7)
        return asyncio.get_running_loop().time()

    assert run_virtual(main())[0] >= 1e9


@pytest.mark.parametrize(
    ("latency", "bandwidth", "speed"), [(0.05, 1e6, 1e10), (0.0, 1e3, 1e9), (1.0, 1e9, 1e8)]
)
def test_ping_pong_takes_its_closed_form(latency: float, bandwidth: float, speed: float) -> None:
    network = Network(latency, bandwidth, speed)
    run = simulate(ping_pong(7, 5000, 1e9), network=network)
    assert run.seconds == pytest.approx(7 * (2 * (latency + size(5000) / bandwidth) + 1e9 / speed))
    assert run.ledger.chain_length() == 14


def test_a_broadcast_shares_the_uplink() -> None:
    network = Network(latency=0.1, bandwidth=1e4, speed=1e10)
    run = simulate(star(clients=4, rounds=3, raw=5000), network=network)
    # The last client gets its copy after all four have gone out; the replies go over four uplinks.
    assert run.seconds == pytest.approx(3 * (4 * size(5000) / 1e4 + 0.1 + 0.5 + size(0) / 1e4 + 0.1))


def test_latency_and_speed_may_differ_by_party() -> None:
    latency = {("ping", "pong"): 1.0, ("pong", "ping"): 0.25}
    network = Network(latency, speed={"ping": 1e9, "pong": 1.0})
    assert simulate(ping_pong(3, 0, 2e9), network=network).seconds == pytest.approx(3 * (1.25 + 2.0))


def test_a_party_computes_one_thing_at_a_time() -> None:
    async def busy(me: Coordinator) -> list[float]:
        async def work(flops: float) -> float:
            await me.compute(int, cost=flops)
            return asyncio.get_running_loop().time()

        return list(await asyncio.gather(*(work(n * 1e10) for n in (1, 2, 3))))

    run = simulate({"a": busy, "b": busy}, network=Network())
    assert run.results["a"] == run.results["b"] == pytest.approx([1.0, 3.0, 6.0])
    assert run.seconds == pytest.approx(6.0)


@pytest.mark.parametrize(
    "roles", [ping_pong(5, 300, 1e8), star(3, 4, 2000), chain(6)], ids=["ping", "star", "chain"]
)
@pytest.mark.parametrize("network", [Network(), Network(0.2), Network(0.01, 1e4, 1e9), Network(0, 1e5)])
def test_a_replay_is_the_run(roles: dict[str, Role], network: Network) -> None:
    once = simulate(roles).ledger
    assert once.replay(network) == pytest.approx(simulate(roles, network=network).seconds, abs=1e-6)


@st.composite
def plans(draw: st.DrawFn) -> dict[str, list[tuple[str, str, int]]]:
    """A random run: what each party does, one thing after another, so that it can always go on."""
    names = [f"p{i}" for i in range(draw(st.integers(2, 4)))]
    plan: dict[str, list[tuple[str, str, int]]] = {name: [] for name in names}
    for n in range(draw(st.integers(0, 14))):
        sender, receiver = draw(st.permutations(names))[:2]
        load = draw(st.integers(0, 3000))
        plan[sender] += [("work", "", draw(st.integers(0, 5))), ("send", receiver, load)]
        if draw(st.integers(0, 5)):  # some mail is never asked for
            plan[receiver].append(("recv", sender, n))
    return plan


def follow(plan: dict[str, list[tuple[str, str, int]]]) -> dict[str, Role]:
    def role(steps: list[tuple[str, str, int]]) -> Role:
        async def body(me: Coordinator) -> None:
            for what, peer, number in steps:
                if what == "work":
                    await me.compute(int, cost=number * 1e8)
                elif what == "send":
                    await me.send(peer, Load(raw=bytes(number)))
                else:
                    await me.recv(peer, Load)

        return body

    return {name: role(steps) for name, steps in plan.items()}


@given(plans(), st.sampled_from([0.0, 0.01, 1.0]), st.sampled_from([float("inf"), 1e4, 1e6]))
def test_a_replay_is_the_run_whatever_the_pattern(
    plan: dict[str, list[tuple[str, str, int]]], latency: float, bandwidth: float
) -> None:
    network = Network(latency, bandwidth, 1e9)
    once, again = simulate(follow(plan)), simulate(follow(plan), network=network)
    assert once.ledger.replay(network) == pytest.approx(again.seconds, abs=1e-6)
    assert again.ledger.replay(network) == pytest.approx(again.seconds, abs=1e-6)
    # A chain of n dependent messages is what unit latency makes the run last, if its end is waited for.
    assert once.ledger.chain_length() == max((e.depth for e in once.ledger), default=0)


def test_a_replay_with_undeclared_computing_is_refused() -> None:
    async def role(me: Coordinator) -> None:
        await me.compute(int)

    with pytest.raises(ConfigError, match="a computed without declaring a cost"):
        simulate({"a": role}).ledger.replay(Network())


def late_star(at_least: int | None) -> Run:
    async def server(me: Coordinator) -> list[str]:
        async with me.within("r") as at:
            return list(await at.gather(Load, deadline=2.0, at_least=at_least))

    def client(delay: float) -> Role:
        async def role(me: Coordinator) -> None:
            async with me.within("r") as at:
                await at.compute(int, cost=delay * 1e10)
                await at.send("server", Load())

        return role

    clients = {"slow": client(2.5), "fast": client(0.5), "lame": client(9.0), "quick": client(1.0)}
    return simulate({"server": server, **clients}, network=Network(0.1))


def test_the_late_are_absent_and_the_rest_in_roster_order() -> None:
    assert late_star(2).results["server"] == ["fast", "quick"]


def test_too_few_in_time_is_an_error_that_names_the_absent() -> None:
    with pytest.raises(
        ProtocolError, match=r"server/r: 2 of 4 sent .* within 2 s, .* at least 3; absent: slow, lame"
    ):
        late_star(3)


def test_a_deadlock_names_who_waits_for_whom_and_where() -> None:
    def waits_for(peer: str) -> Role:
        async def role(me: Coordinator) -> None:
            async with me.within("fit") as fit, fit.within(3) as at:
                await at.recv(peer, Load)

        return role

    with pytest.raises(StallError) as caught:
        simulate({"a": waits_for("b"), "b": waits_for("a")})
    assert "a waits for b in 'fit/3'; b waits for a in 'fit/3'" in str(caught.value)
    assert (caught.value.party, caught.value.scope) == ("a", "fit/3")


def test_waiting_for_a_party_that_has_ended_is_a_stall() -> None:
    async def ends(me: Coordinator) -> None:
        await me.send("b", Load())

    async def waits(me: Coordinator) -> None:
        await me.recv("a", Load)
        await me.recv("a", Load)

    for network in (None, Network(0.1)):
        with pytest.raises(StallError, match=r"^b: no role can go on: b waits for a in ''$"):
            simulate({"a": ends, "b": waits}, network=network)


def test_a_stall_that_no_line_explains_ends_too() -> None:
    async def stuck(me: Coordinator) -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(StallError, match="none waits for a message"):
        simulate({"a": stuck, "b": stuck})


def test_works_below_a_running_loop() -> None:
    async def notebook_cell() -> float:
        return simulate(ping_pong(2, 0, 0), network=Network(1.0)).seconds

    assert asyncio.run(notebook_cell()) == pytest.approx(4.0)


def test_a_run_inside_a_role_has_a_clock_of_its_own() -> None:
    async def outer(me: Coordinator) -> tuple[float, float]:
        inner = simulate(ping_pong(2, 0, 0), network=Network(1.0)).seconds
        return inner, asyncio.get_running_loop().time()

    run = simulate({"a": outer}, network=Network())
    assert run.results["a"] == (pytest.approx(4.0), 0.0)


def test_no_task_and_no_thread_is_left(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []

    async def forgotten() -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            ended.append("forgotten")

    async def numbers() -> Any:
        try:
            yield 1
            yield 2
        finally:
            ended.append("generator")

    async def role(me: Coordinator) -> None:
        role.task = asyncio.ensure_future(forgotten())  # type: ignore[attr-defined]
        role.numbers = numbers()  # type: ignore[attr-defined]
        await anext(role.numbers)  # type: ignore[attr-defined]

    before = {*threading.enumerate()}  # of earlier tests one may end meanwhile
    simulate({"a": role})
    gc.collect()
    assert sorted(ended) == ["forgotten", "generator"]
    assert {*threading.enumerate()} <= before and not caplog.records


INTERRUPTED = """
    import signal, threading
    from protocols.federation import simulate
    from protocols.wire.transport import Network

    def interrupt():
        started.wait()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    started = threading.Event()
    threading.Thread(target=interrupt, daemon=True).start()

    async def busy(me):
        try:
            while True:
                await me.compute(work, cost=1e9)
        finally:
            print("busy cleaned up", flush=True)

    def work():
        started.set()
        if {stubborn}:
            while True:
                pass

    async def waits(me):
        try:
            await me.recv("busy", Load)
        finally:
            print("waits cleaned up", flush=True)

    from protocols.wire.message import Message
    class Load(Message, reveals="test"):
        n: int

    try:
        simulate({{"busy": busy, "waits": waits}}, network={network})
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize(
    ("stubborn", "network"),
    [(False, "Network(0.1)"), (False, "None"), (True, "Network(0.1)")],
    ids=["awaits", "never awaits", "never returns"],
)
def test_ctrl_c_stops_every_role_and_lets_it_clean_up(stubborn: bool, network: str) -> None:
    script = textwrap.dedent(INTERRUPTED).format(stubborn=stubborn, network=network)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.stderr == ""
    assert sorted(done.stdout.split("\n")) == sorted(
        ["", "busy cleaned up", "waits cleaned up", "interrupted"]
    )


@pytest.mark.parametrize("raises", [False, True])
def test_what_a_run_freezes_it_thaws_and_another_freeze_stays(raises: bool) -> None:
    async def counts(me: Coordinator) -> int:
        if raises:
            raise ConfigError("no")
        return gc.get_freeze_count()

    def frozen() -> int:
        try:
            return int(simulate({"a": counts}).results["a"])
        except ConfigError:
            return 1

    assert gc.get_freeze_count() == 0 and frozen() > 0 and gc.get_freeze_count() == 0
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        assert frozen() > 0 and 0 < gc.get_freeze_count() <= before
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("young", [700, 0, 50_000])
def test_the_collector_is_as_it_was_when_a_run_is_over(young: int) -> None:
    async def threshold(me: Coordinator) -> int:
        return gc.get_threshold()[0]

    before = gc.get_threshold()
    gc.set_threshold(young, *before[1:])
    try:
        seen = simulate({"a": threshold}).results["a"]
        assert seen == (max(young, 20_000) if young else 0)
        assert gc.get_threshold()[0] == young
    finally:
        gc.set_threshold(*before)
