"""A party's verbs: what is sent arrives, randomness is its own, and computing is paid for."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from protocols import party as party_module
from protocols.arrays import Array, Arrays
from protocols.errors import ConfigError, DataError, PartyError, PolicyError, ProtocolError
from protocols.federation import simulate
from protocols.flops import forward_flops
from protocols.party import Coordinator, Desk, Party
from protocols.wire.codec import encode
from protocols.wire.ledger import Ledger
from protocols.wire.message import Message, Spec
from protocols.wire.transport import Local, Network

Role = Callable[[Coordinator], Coroutine[Any, Any, Any]]


class Weights(Message, reveals="test: a model"):
    weights: Arrays


class Vector(Message, reveals="test: numbers"):
    x: Annotated[Array, Spec("float32", ("b",))]


class Done(Message, reveals="test: the end"):
    pass


class Listed(Message, reveals="test: a list"):
    values: list[int]


def party(name: str = "a", seed: int = 0) -> Party:
    return Party(Desk(name, Ledger(Local([name])), seed))


def two(a: Role, b: Role, network: Network | None = None) -> dict[str, Any]:
    return simulate({"a": a, "b": b}, network=network).results


async def idle(me: Coordinator) -> None:
    pass


async def sends(me: Coordinator) -> None:
    await me.send("b", Vector(x=np.arange(3, dtype=np.float32)))
    await me.send("b", Weights(weights=Arrays({"w": np.ones(2)})))


def test_a_broadcast_is_decoded_once_and_nobody_can_change_it_for_another() -> None:
    async def server(me: Coordinator) -> None:
        await me.broadcast(Vector(x=np.arange(3, dtype=np.float32)))
        await me.broadcast(Listed(values=[1]))

    async def client(me: Coordinator) -> tuple[Vector, list[int]]:
        vector, listed = await me.recv("s", Vector), await me.recv("s", Listed)
        listed.values.append(2)
        return vector, listed.values

    told = simulate({"s": server, "a": client, "b": client}).results
    assert party_module._latest == (b"", None)  # nothing of a peer's stays when the run is over
    assert told["a"][0] is told["b"][0] and not told["a"][0].x.flags.writeable
    assert told["a"][1] == told["b"][1] == [1, 2]


def test_one_body_of_two_kinds_is_read_as_each() -> None:
    body = encode(Done())

    async def sends(me: Coordinator) -> None:
        for kind in (Done.kind, Vector.kind):
            await me._deliver("b", kind, body, bytes(32))

    async def receives(me: Coordinator) -> None:
        await me.recv("a", Done)
        await me.recv("a", Vector)

    with pytest.raises(ProtocolError, match=r"^b: tests.Vector/1 from a in '': field x: Field required"):
        two(sends, receives)


def test_what_is_sent_arrives_in_order_and_read_only() -> None:
    async def receives(me: Coordinator) -> list[Any]:
        either = await me.recv("a", (Done, Vector))
        return [either, await me.recv("a", Weights, like=Arrays({"w": np.zeros(2)}))]

    vector, weights = two(sends, receives)["b"]
    assert vector == Vector(x=np.arange(3, dtype=np.float32)) and not vector.x.flags.writeable
    assert weights.weights == Arrays({"w": np.ones(2)})


def test_the_wrong_kind_names_both() -> None:
    async def receives(me: Coordinator) -> None:
        async with me.within("fit") as at:
            await at.recv("a", (Done, Weights))

    async def wrong(me: Coordinator) -> None:
        async with me.within("fit") as at:
            await at.send("b", Vector(x=np.zeros(1, np.float32)))

    said = r"^b/fit: expected tests.Done/1 or tests.Weights/1 from a in 'fit', got tests.Vector/1$"
    with pytest.raises(ProtocolError, match=said):
        two(wrong, receives)


@pytest.mark.parametrize(
    "held",
    [{"w": np.ones(3)}, {"v": np.ones(2)}, {"w": np.ones(2, np.float32)}, {"w": np.ones(2), "v": np.ones(1)}],
)
def test_weights_of_another_model_are_refused(held: dict[str, Array]) -> None:
    async def receives(me: Coordinator) -> None:
        await me.recv("a", Vector)
        await me.recv("a", Weights, like=Arrays(held))

    with pytest.raises(
        ProtocolError, match=r"^b: tests.Weights/1.weights from a in '': expected .* same model\?"
    ):
        two(sends, receives)


@given(st.lists(st.sampled_from(["batches", "dropout", "clients"]), max_size=6))
def test_randomness_does_not_depend_on_what_was_asked_before(before: list[str]) -> None:
    me = party()
    for purpose in before:
        me.rng(purpose).random(3)
    assert (me.rng("batches").integers(0, 2**60, 4) == party().rng("batches").integers(0, 2**60, 4)).all()


def test_randomness_differs_by_party_scope_purpose_and_seed() -> None:
    me = party()
    streams = [
        *(party(name, seed).rng() for name in ("a", "b") for seed in (0, 1)),
        *(me.rng(purpose) for purpose in ("x", "y")),
        *(party().within(scope).rng(purpose) for scope in ("x", "fit") for purpose in ("", "x")),
        party().within("fit").within(1).rng(),
    ]
    assert len({tuple(rng.integers(0, 2**63, 2)) for rng in streams}) == len(streams)


def test_randomness_is_philox_keyed_by_the_hash_of_where_it_is_asked_for() -> None:
    key = hashlib.sha256(b"7\0a\0fit/1\0batches").digest()[:16]
    expected = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
    asked = party(seed=7).within("fit").within(1).rng("batches")
    assert (asked.random(5) == expected.random(5)).all()


def test_no_global_generator_is_touched() -> None:
    noise = nn.Dropout(0.5)
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]

    async def role(me: Coordinator) -> list[torch.Tensor]:
        x = torch.ones(50)
        return [await me.compute(noise, x, cost=1, rng=me.rng(p)) for p in ("one", "one", "two")]

    one, again, two_ = simulate({"a": role}).results["a"]
    assert torch.equal(one, again) and not torch.equal(one, two_)
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()  # type: ignore[index]
    assert state[2] == random.getstate()


def test_the_generator_comes_back_also_after_an_error() -> None:
    before = torch.get_rng_state()

    def fails() -> None:
        torch.rand(1)
        raise DataError("no")

    async def role(me: Coordinator) -> None:
        await me.compute(fails, cost=1, rng=me.rng())

    with pytest.raises(DataError):
        simulate({"a": role})
    assert torch.equal(before, torch.get_rng_state())


def test_computing_under_a_clock_without_a_cost_is_an_error() -> None:
    async def role(me: Coordinator) -> None:
        async with me.within("fit") as at:
            await at.compute(sorted, [1])

    with pytest.raises(ConfigError, match=r"^a/fit: sorted runs under a virtual clock and declares no cost="):
        simulate({"a": role}, network=Network())
    simulate({"a": role})  # without a clock nothing is charged


def test_a_module_counts_itself() -> None:
    module, x = nn.Linear(3, 4), torch.ones(5, 3)

    async def role(me: Coordinator) -> None:
        await me.compute(module, x)

    run = simulate({"a": role}, network=Network(speed=1.0))
    assert run.seconds == pytest.approx(forward_flops(module, x)) and forward_flops(module, x) == 120


def test_an_unknown_operation_is_an_error_with_the_nearest() -> None:
    async def role(me: Coordinator) -> None:
        await me.compute(int, cost={"X25519s": 3})

    with pytest.raises(ConfigError, match=r"^a: operation 'X25519s' has no price; did you mean 'x25519'\?"):
        simulate({"a": role})


def test_computing_in_a_thread_gives_the_same() -> None:
    ledger = Ledger(Local(["a"]))
    me = Party(Desk("a", ledger, threaded=True))

    async def main() -> list[float]:
        return [float(await me.compute(torch.rand, 1, rng=me.rng(), cost=1)) for _ in range(2)]

    one, two_ = asyncio.run(main())
    assert one == two_ and ledger.compute["a"].calls == 2


def test_gather_and_broadcast_keep_the_order_of_the_roster() -> None:
    def client(seconds: float) -> Role:
        async def role(me: Coordinator) -> None:
            await me.compute(int, cost=seconds * 1e10)
            await me.send("server", Vector(x=np.array([seconds], np.float32)))
            await me.recv("server", Done)

        return role

    async def server(me: Coordinator) -> tuple[tuple[str, ...], list[str], list[str]]:
        came = await me.gather(Vector)
        await me.broadcast(Done(), to=me.roster[:1])
        await me.broadcast(Done(), to=me.roster[1:])
        return me.roster, list(came), [f"{m.x[0]:g}" for m in came.values()]

    clients = {"c": client(3.0), "a": client(2.0), "b": client(1.0)}
    roster, came, values = simulate({"server": server, **clients}, network=Network()).results["server"]
    assert roster == ("c", "a", "b") == tuple(came) and values == ["3", "2", "1"]


def test_a_chosen_few_are_gathered_in_the_order_asked() -> None:
    async def server(me: Coordinator) -> list[str]:
        return list(await me.gather(Vector, of=iter(["b", "a"]), deadline=1.0))

    async def client(me: Coordinator) -> None:
        await me.send("server", Vector(x=np.zeros(1, np.float32)))

    assert simulate({"server": server, "a": client, "b": client}).results["server"] == ["b", "a"]


def test_a_wrong_message_in_a_gather_with_a_deadline_is_raised() -> None:
    async def server(me: Coordinator) -> None:
        await me.gather(Vector, deadline=1.0)

    async def client(me: Coordinator) -> None:
        await me.send("server", Done())

    with pytest.raises(ProtocolError, match=r"^server: expected tests.Vector/1"):
        simulate({"server": server, "a": client, "b": client})


def test_arrivals_come_as_they_are_sent_and_several_at_once_in_the_order_asked() -> None:
    sent = {"a": [0.3], "b": [0.1, 0.1], "c": [0.2]}  # seconds before each message; at 0.2 there are two

    async def client(me: Coordinator) -> None:
        async with me.within("fit") as at:
            for pause in sent[me.name]:
                await asyncio.sleep(pause)
                await at.send("server", Done())

    async def server(me: Coordinator) -> list[str]:
        async with me.within("fit") as at, at.arrivals(Done, of=["c", "b", "a"]) as coming:
            came: list[str] = []
            async for peer, _ in coming:
                came.append(peer)
                if len(came) == 4:
                    break
        return came

    run = simulate({"server": server, "a": client, "b": client, "c": client}, network=Network(latency=0.0))
    assert run.results["server"] == ["b", "c", "b", "a"]


def test_arrivals_raise_what_a_gather_would_and_may_be_left_at_any_time() -> None:
    async def client(me: Coordinator) -> None:
        async with me.within("fit") as at:
            await at.send("server", Done())
        async with me.within("end") as at:
            await at.recv("server", Done)

    async def wrong(me: Coordinator) -> None:
        async with me.within("fit") as at, at.arrivals(Vector) as coming:
            async for _ in coming:
                pass

    async def leaves(me: Coordinator) -> int:
        async with me.within("fit") as at, at.arrivals(Done) as coming:
            first = [peer async for peer, _ in first_of(coming)]
        async with me.within("end") as at:
            await at.broadcast(Done())
        return len(first)

    async def first_of(coming: Any) -> Any:
        async for one in coming:
            yield one
            return

    with pytest.raises(ProtocolError, match=r"^server/fit: expected tests.Vector/1"):
        simulate({"server": wrong, "a": client})
    assert simulate({"server": leaves, "a": client, "b": client}).results["server"] == 1


def test_an_error_is_marked_with_the_innermost_scope() -> None:
    async def role(me: Coordinator) -> None:
        async with me.within("fit") as fit, fit.within(2):
            raise KeyError("x")

    with pytest.raises(PartyError, match=r"^a/fit/2: KeyError: 'x'$") as caught:
        two(role, idle)
    assert isinstance(caught.value.__cause__, KeyError)


def test_progress_reaches_who_watches() -> None:
    seen: list[tuple[str, int, int]] = []

    async def role(me: Coordinator) -> None:
        me.within("fit").progress("rounds", 1, 2)

    simulate({"a": role}, on_progress=lambda *told: seen.append(told))
    simulate({"a": role})
    assert seen == [("rounds", 1, 2)]


class Count:
    """What training goes on from: how many steps there were, in one place alone."""

    def __init__(self) -> None:
        self.steps = 0

    def snapshot(self) -> Arrays:
        return Arrays({"steps": np.array([self.steps])})

    def restore(self, state: Arrays) -> None:
        self.steps = int(state["steps"][0])


class Kept:
    """A party's checkpoints."""

    def __init__(self, done: int = 0) -> None:
        self.done, self.states = done, {done: Arrays({"steps": np.array([done])})}

    def latest(self) -> tuple[int, Arrays | None]:
        return self.done, self.states[self.done] if self.done else None

    def save(self, done: int, state: Arrays) -> None:
        self.states[done] = state

    def alignment(self) -> Arrays | None:
        return None

    def save_alignment(self, state: Arrays) -> None: ...


def stepped(kept: Kept, *, begin: int = 0, ends: int = 9) -> tuple[int, list[int], list[tuple[int, int]]]:
    """Four steps with these checkpoints, of which that numbered `ends` finds nothing to train.

    How many were counted, how many had been when each began, and what whoever watches is told.
    """
    seen: list[tuple[int, int]] = []
    counts: list[int] = []

    async def role(me: Coordinator) -> int:
        me.desk.checkpoints, count = kept, Count()
        me.desk.on_progress = lambda what, done, total: seen.append((done, total))
        steps = me.steps(4, count, begin=begin, progress="steps")
        assert steps.resumed == (kept.done > 0)
        assert count.steps == kept.done  # before the first step, since what comes between may need it
        for step in steps:
            async with step as at:
                assert at.scope == f"fit/{step.number}" and step.is_last == (step.number == 3)
                if step.number == ends:
                    step.leave_out()
                    break
                counts.append(count.steps)
                count.steps += 1
        return steps.done

    return simulate({"bank": role}).results["bank"], counts, seen


def test_steps_go_on_from_where_an_earlier_process_came_to() -> None:
    assert stepped(Kept()) == (4, [0, 1, 2, 3], [(1, 4), (2, 4), (3, 4), (4, 4)])
    assert stepped(Kept(3)) == (4, [3], [(4, 4)])
    assert stepped(Kept(4)) == (4, [], [])


def test_steps_go_on_from_the_training_that_they_continue() -> None:
    assert stepped(Kept(), begin=2) == (4, [0, 1], [(3, 4), (4, 4)])
    assert stepped(Kept(3), begin=2) == (4, [3], [(4, 4)])


def test_a_step_that_is_left_out_is_neither_counted_nor_kept() -> None:
    kept = Kept()
    assert stepped(kept, ends=2) == (2, [0, 1], [(1, 4), (2, 4)])
    assert sorted(kept.states) == [0, 1, 2]
    assert int(kept.states[2]["steps"][0]) == 2


def test_a_party_does_not_show_what_it_holds() -> None:
    assert "Desk" not in repr(party()) and "Names" not in repr(party())


def test_a_party_sends_no_message_that_was_not_granted() -> None:
    desk = Desk("a", Ledger(Local(["a", "b"])), speaks=frozenset([Vector.kind]))
    me = Party(desk)

    async def says() -> None:
        await me.send("b", Vector(x=np.zeros(1, np.float32)))
        await me.send("b", Done())

    with pytest.raises(
        PolicyError, match=f"^{Done.kind} is not among the messages that this job was granted"
    ):
        asyncio.run(says())
    assert [entry.kind for entry in desk.ledger] == [Vector.kind]
