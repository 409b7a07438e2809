"""What the mailbox can repair changes nothing; what it cannot ends the run with one clear error."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError, DataError, LineError, PartyError, ProtocolError, StallError
from protocols.federation import simulate
from protocols.party import Coordinator, Run
from protocols.wire.faults import Plan
from protocols.wire.message import Message
from protocols.wire.transport import Network

Role = Callable[[Coordinator], Coroutine[Any, Any, Any]]
ROUNDS = 3


class Step(Message, reveals="test: a number and where it came from"):
    n: int
    origin: str


class Halt(BaseException):
    """Not an Exception, and not one that asyncio knows."""


async def hub(me: Coordinator) -> list[int]:
    seen: list[int] = []
    async with me.within("fit") as fit:
        for r in range(ROUNDS):
            async with fit.within(r) as at:
                for k in range(3):
                    await at.broadcast(Step(n=k, origin=me.name))
                for _ in range(2):
                    seen += [m.n for m in (await at.gather(Step)).values()]
    async with me.within("end") as at:
        seen += [m.n for m in (await at.gather(Step)).values()]
    return seen


async def spoke(me: Coordinator) -> list[int]:
    seen: list[int] = []
    async with me.within("fit") as fit:
        for r in range(ROUNDS):
            async with fit.within(r) as at:
                await at.send("hub", Step(n=int(at.rng().integers(1000)), origin=me.name))
                seen += [(await at.recv("hub", Step)).n for _ in range(3)]
                await at.send("hub", Step(n=sum(seen), origin=me.name))
    async with me.within("end") as at:
        await at.send("hub", Step(n=sum(seen), origin=me.name))
    return seen


ROLES: dict[str, Role] = {"hub": hub, "s1": spoke, "s2": spoke, "s3": spoke}


@cache
def undisturbed() -> Run:
    return simulate(ROLES, seed=5)


@given(
    st.integers(0, 2**64),
    st.floats(0, 3),
    st.floats(0, 1),
    st.sampled_from([None, Network(0.5), Network(0.01, 1e4)]),
)
def test_a_run_with_delays_duplicates_and_reordering_is_the_undisturbed_run(
    seed: int, delay: float, duplicate: float, network: Network | None
) -> None:
    plain = undisturbed()
    rough = simulate(ROLES, seed=5, network=network, faults=Plan(seed, delay, duplicate))
    assert rough.results == plain.results
    for sender in ROLES:
        for receiver in ROLES:
            assert rough.ledger.line_digest(sender, receiver) == plain.ledger.line_digest(sender, receiver)
    assert rough.ledger.nbytes == plain.ledger.nbytes


def test_a_plan_does_disturb() -> None:
    plan = Plan(seed=1, delay=2.0, duplicate=0.5)
    seconds = {simulate(ROLES, faults=p).seconds for p in (plan, plan, Plan(seed=2, delay=2.0), Plan())}
    assert len(seconds) == 3 and 0.0 in seconds


def test_a_dropped_envelope_ends_in_a_stall_that_names_the_line() -> None:
    for seed in range(5):
        with pytest.raises(StallError, match=r"waits for (hub|s\d) in '(fit/\d|end)'"):
            simulate(ROLES, faults=Plan(seed=seed, drop=0.3))


@pytest.mark.parametrize("after", [0, 4, 9])
@pytest.mark.parametrize("cut", [("hub", "s2"), ("s2", "hub")])
def test_a_cut_line_stops_every_role_with_one_error(after: int, cut: tuple[str, str]) -> None:
    with pytest.raises(LineError, match=rf"the line to (hub|s2) is cut after {after} messages") as caught:
        simulate(ROLES, faults=Plan(cut=cut, cut_after=after))
    assert caught.value.party in cut and caught.value.scope.startswith("fit/")


@pytest.mark.parametrize(
    "settings", [{"delay": -1.0}, {"drop": 1.5}, {"duplicate": -0.1}, {"drop": float("nan")}]
)
def test_a_plan_that_cannot_be_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="probabilities from 0 to 1"):
        Plan(**settings)  # type: ignore[arg-type]  # not the seed


@pytest.fixture(scope="module", autouse=True)
def _a_small_heap() -> Iterator[None]:
    """The tests look for what they left behind, and need not look through all that was there before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


FAILURES: list[tuple[BaseException, type[BaseException], str]] = [
    (DataError("3 of 9 rows"), DataError, r"^s2/fit/1: 3 of 9 rows$"),
    (ProtocolError("odd"), ProtocolError, r"^s2/fit/1: odd$"),
    (KeyError("k"), PartyError, r"^s2/fit/1: KeyError: 'k'$"),
    (OSError("disk"), PartyError, r"^s2/fit/1: OSError: disk$"),
    (StopIteration(), PartyError, r"^s2/fit/1: StopIteration: $"),
    (TimeoutError("slow"), PartyError, r"^s2/fit/1: TimeoutError: slow$"),
    (ExceptionGroup("g", [DataError("inner"), KeyError("x")]), DataError, r"^s2/fit/1: inner$"),
    (ExceptionGroup("g", [KeyError("x")]), PartyError, r"^s2/fit/1: KeyError: 'x'$"),
    (KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
    (SystemExit(3), SystemExit, "3"),
    (Halt("now"), Halt, "now"),
    (asyncio.CancelledError(), PartyError, "^s2: CancelledError"),
]


@pytest.mark.parametrize(
    ("raised", "expected", "text"), FAILURES, ids=lambda v: getattr(type(v), "__name__", "")
)
@pytest.mark.parametrize("network", [None, Network(0.1)], ids=["instant", "network"])
@pytest.mark.parametrize("faults", [None, Plan(seed=1, delay=50.0, duplicate=1.0)], ids=["calm", "rough"])
def test_a_role_that_raises_stops_every_role(
    raised: BaseException,
    expected: type[BaseException],
    text: str,
    network: Network | None,
    faults: Plan | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended: list[str] = []

    def watched(role: Role) -> Role:
        async def body(me: Coordinator) -> Any:
            try:
                return await role(me)
            finally:
                await asyncio.sleep(0)  # cleaning up may await
                ended.append(me.name)

        return body

    async def fails(me: Coordinator) -> None:
        async with me.within("fit") as fit:
            async with fit.within(0) as at:
                await at.recv("hub", Step)
            async with fit.within(1):
                raise raised

    async def endless(me: Coordinator) -> None:
        async with me.within("fit") as fit, fit.within(0) as at:
            if me.name == "hub":
                await at.broadcast(Step(n=0, origin="hub"))
            while True:
                await asyncio.sleep(1.0)

    roles = {"hub": endless, "s1": endless, "s2": fails, "s3": endless}
    if isinstance(raised, asyncio.CancelledError):
        roles |= {name: short for name in ("hub", "s1", "s3")}
    gc.collect()  # of a test of the network before this one, a thread may be left
    before = threading.active_count()
    with pytest.raises(expected, match=text) as caught:
        simulate({name: watched(role) for name, role in roles.items()}, network=network, faults=faults)
    assert sorted(ended) == sorted(roles)
    if type(caught.value) is PartyError and not isinstance(raised, asyncio.CancelledError):
        assert type(caught.value.__cause__) in {type(raised), KeyError}
    del caught
    gc.collect()
    assert threading.active_count() == before
    assert caplog.records == []  # no task was destroyed or its error forgotten


async def short(me: Coordinator) -> None:
    if me.name == "hub":
        async with me.within("fit") as fit, fit.within(0) as at:
            await at.broadcast(Step(n=0, origin="hub"))


def test_a_role_that_cannot_even_start_is_marked() -> None:
    def broken(me: Coordinator) -> Coroutine[Any, Any, None]:
        raise TypeError("missing argument")

    with pytest.raises(PartyError, match="^b: TypeError: missing argument"):
        simulate({"a": short, "b": broken})


def test_the_first_failure_is_the_one_raised() -> None:
    def fails(seconds: float) -> Role:
        async def role(me: Coordinator) -> None:
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                raise DataError("while cleaning up") from None
            raise DataError("first")

        return role

    with pytest.raises(DataError, match=r"^b: first$"):
        simulate({"a": fails(2.0), "b": fails(1.0), "c": fails(3.0)})
