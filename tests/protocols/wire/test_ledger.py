"""The ledger is what crossed: every byte, in a chain, the same for the same run."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError
from protocols.federation import simulate
from protocols.party import Coordinator, Desk, Party, run
from protocols.wire.clock import run_virtual
from protocols.wire.codec import encode
from protocols.wire.faults import Plan
from protocols.wire.ledger import Entry, Ledger
from protocols.wire.message import Message
from protocols.wire.transport import Envelope, Local, Network

Role = Callable[[Coordinator], Coroutine[Any, Any, Any]]


class Note(Message, reveals="test: a text"):
    text: str = ""


class Count(Message, reveals="test: a number"):
    n: int


class Counting(Local):
    """A transport that weighs what it is handed."""

    carried: list[Envelope]

    async def deliver(self, envelope: Envelope) -> None:
        self.__dict__.setdefault("carried", []).append(envelope)
        await super().deliver(envelope)


async def left(me: Party) -> None:
    for r in range(3):
        async with me.within("fit") if r == 0 else me.within(f"more {r}") as at, at.within(r) as deep:
            await deep.send("right", Note(text="x" * 10 * r))
            await deep.recv("right", Count)
            await deep.send("right", Count(n=r))


async def right(me: Party) -> None:
    for r in range(3):
        async with me.within("fit") if r == 0 else me.within(f"more {r}") as at, at.within(r) as deep:
            await deep.send("left", Count(n=int(me.rng("x").integers(100))))
            await deep.recv("left", Note)
            await deep.recv("left", Count)


ROLES: dict[str, Role] = {"left": left, "right": right}


def test_bytes_in_the_ledger_are_the_bytes_delivered() -> None:
    inner = Counting(["left", "right"])
    ledger = Ledger(inner)

    async def main() -> None:
        await run(left=left(Party(Desk("left", ledger))), right=right(Party(Desk("right", ledger))))

    run_virtual(main())
    assert ledger.nbytes == sum(len(e.body) for e in inner.carried) > 0
    assert [(e.sender, e.receiver, e.scope, e.sequence, e.kind, e.nbytes) for e in ledger] == [
        (e.sender, e.receiver, e.scope, e.sequence, e.kind, len(e.body)) for e in inner.carried
    ]
    assert len(ledger) == 9 and encode(Note(text="x" * 20)) in [e.body for e in inner.carried]


def test_a_line_of_one_job_is_that_of_its_run_alone() -> None:
    """One ledger over several jobs, in which the same scopes come again."""
    runs = {job: simulate(ROLES, seed=seed).ledger for seed, job in enumerate(("one", "two"))}
    ledger = Ledger()
    for job, alone in runs.items():
        for e in alone:
            ledger._record(Envelope(job, *e[3:5], e.scope, e.sequence, e.kind, e.depth, e.digest, b""))
    for line in (("left", "right"), ("right", "left")):
        of = [ledger.line_digest(*line, job) for job in runs]
        assert of == [alone.line_digest(*line) for alone in runs.values()]
        assert ledger.line_digest(*line) not in of


def test_same_seed_same_history() -> None:
    first, second, other = (simulate(ROLES, seed=seed) for seed in (1, 1, 2))
    assert first.ledger.frame().equals(second.ledger.frame())
    assert not first.ledger.frame().equals(other.ledger.frame())
    for line in (("left", "right"), ("right", "left")):
        assert first.ledger.line_digest(*line) == second.ledger.line_digest(*line)
    assert first.ledger.line_digest("right", "left") != other.ledger.line_digest("right", "left")
    assert first.ledger.line_digest("left", "right") != first.ledger.line_digest("right", "left")


def test_the_digest_of_a_line_does_not_depend_on_arrival_or_time() -> None:
    plain = simulate(ROLES).ledger
    either: list[Any] = [{"network": Network(0.3, 1e3)}, {"faults": Plan(seed=3, delay=5.0, duplicate=0.5)}]
    for settings in either:
        disturbed = simulate(ROLES, **settings).ledger
        for line in (("left", "right"), ("right", "left")):
            assert plain.line_digest(*line) == disturbed.line_digest(*line)


_envelopes = st.builds(
    Envelope,
    job=st.just("j"),
    sender=st.just("a"),
    receiver=st.just("b"),
    scope=st.sampled_from(["s", "s|0", "s/1", ""]),
    sequence=st.integers(0, 3),
    kind=st.sampled_from(["tests.Note/1", "tests.Count/1"]),
    depth=st.just(1),
    digest=st.sampled_from([b"x" * 32, b"y" * 32]),
    body=st.binary(max_size=3),
)


@given(st.lists(_envelopes, min_size=1, max_size=5), st.data())
def test_the_chain_changes_if_any_entry_does(history: list[Envelope], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(history) - 1))
    changed = [*history[:place], data.draw(_envelopes), *history[place + 1 :]]
    shorter = history[:place] + history[place + 1 :]

    def told(e: Envelope) -> tuple[Any, ...]:
        return (e.scope, e.sequence, e.kind, e.digest, len(e.body))

    assert (last(history) == last(changed)) is (list(map(told, history)) == list(map(told, changed)))
    assert last(history) != last(shorter)


def last(history: list[Envelope]) -> bytes:
    ledger = Ledger()
    for envelope in history:
        ledger._record(envelope)
    return list(ledger.chains())[-1] if history else b""


def test_sums_match_the_entries() -> None:
    ledger = simulate(ROLES).ledger
    frame = ledger.frame()
    assert list(frame["bytes"]) == [e.nbytes for e in ledger]
    assert list(frame["round"]) == [_round(e) for e in ledger]
    for by in ("sender", "receiver", "kind", "scope", "round", "reveals", "job"):
        summary = ledger.summary(by=[by])
        assert summary["bytes"].sum() == ledger.nbytes and summary["messages"].sum() == len(ledger)
    for row in ledger.summary().reset_index().to_dict("records"):
        sender, receiver, kind = row["sender"], row["receiver"], row["kind"]
        line = [e for e in ledger if (e.sender, e.receiver, e.kind) == (sender, receiver, kind)]
        assert (row["messages"], row["bytes"]) == (len(line), sum(e.nbytes for e in line))
        assert row["reveals"] == Message.kinds[kind].reveals
    both = ledger.summary(by=["party", "direction"])["bytes"]
    for party in ("left", "right"):
        assert both[party, "sent"] == sum(e.nbytes for e in ledger if e.sender == party)
        assert both[party, "received"] == sum(e.nbytes for e in ledger if e.receiver == party)


def _round(e: Entry) -> int:
    return int(e.scope.rpartition("/")[2])


def test_a_scope_holds_what_is_below_it_and_no_namesake() -> None:
    ledger = simulate(ROLES).ledger
    assert {e.scope for e in ledger.within("fit")} == {"fit/0"}
    assert ledger.within("fi") == [] and len(ledger.within("more 1/1")) == 3


def test_summing_by_what_there_is_not_says_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"cannot sum by \['colour'\]; columns are .*'party', 'direction'"):
        simulate(ROLES).ledger.summary(by=["kind", "colour"])


def test_an_empty_ledger_sums_to_nothing() -> None:
    ledger = Ledger()
    assert (len(ledger), ledger.nbytes, ledger.chain_length(), ledger.replay(Network())) == (0, 0, 0, 0.0)
    assert ledger.frame().empty and ledger.summary().empty and ledger.summary(["party", "direction"]).empty


def test_the_chain_length_of_a_scope_counts_only_what_had_to_wait() -> None:
    async def a(me: Coordinator) -> None:
        async with me.within("before") as at:
            for _ in range(5):
                await at.send("b", Count(n=1))
                await at.recv("b", Count)
        async with me.within("fit") as at:
            await at.send("c", Count(n=1))

    async def b(me: Coordinator) -> None:
        async with me.within("before") as at:
            for _ in range(5):
                await at.send("a", await at.recv("a", Count))

    async def c(me: Coordinator) -> None:
        async with me.within("fit") as at:
            await at.send("b", Count(n=1))  # waits for nobody, and nobody for it
            await at.recv("a", Count)

    ledger = simulate({"a": a, "b": b, "c": c}).ledger
    assert (ledger.chain_length(), ledger.chain_length("before"), ledger.chain_length("fit")) == (11, 10, 1)


def test_a_chain_of_one_scope_holds_nothing_of_a_namesake() -> None:
    async def a(me: Coordinator) -> None:
        for name in ("fit", "fitness"):
            async with me.within(name) as at:
                await at.send("b", Count(n=1))

    async def b(me: Coordinator) -> None:
        async with me.within("fit") as at:
            await at.recv("a", Count)
        async with me.within("fitness") as at:
            await at.recv("a", Count)
            await at.send("a", Count(n=1))

    ledger = simulate({"a": a, "b": b}).ledger
    assert (ledger.chain_length("fit"), ledger.chain_length("fitness")) == (1, 2)


def test_what_one_party_saw_is_too_little_for_a_chain_or_a_replay() -> None:
    ledger = Ledger(inner := Local(["a", "b"]))

    async def main() -> None:
        await inner.deliver(Envelope("j", "b", "a", "s", 0, Note.kind, 1, bytes(32), b""))
        await ledger.collect("a", "b", "s")

    run_virtual(main())
    with pytest.raises(ConfigError, match="one party's messages; a chain needs those of all parties"):
        ledger.chain_length()
    with pytest.raises(ConfigError, match="one party's messages; a replay needs those of all parties"):
        ledger.replay(Network())


def test_computing_is_summed_by_party() -> None:
    async def role(me: Coordinator) -> None:
        await me.compute(int, cost=5e9)
        await me.compute(int, cost={"x25519": 2})
        await me.compute(int)

    ledger = simulate({"a": role}).ledger
    meter = ledger.compute["a"]
    assert (meter.calls, meter.unpriced, meter.operations) == (3, 1, {"x25519": 2})
    assert ledger.compute_summary().loc["a", "flops"] == meter.flops > 5e9


def test_a_stored_ledger_keeps_the_record_and_drops_the_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = simulate(ROLES).ledger
    stored = pickle.dumps(ledger)
    assert b"Mailbox" not in stored
    monkeypatch.setattr(Message, "kinds", {})  # read where the method is not installed
    back: Ledger = pickle.loads(stored)  # noqa: S301  # our own bytes
    assert back.frame().equals(ledger.frame())
    assert back.replay(Network(0.1)) == ledger.replay(Network(0.1))
    assert "test: a text" in set(back.frame()["reveals"])


def test_the_ledger_keeps_no_payload() -> None:
    async def role(me: Coordinator) -> None:
        await me.send("a", Note(text="canary-71c4"))

    assert b"canary-71c4" not in pickle.dumps(simulate({"a": role}).ledger)


def test_numpy_numbers_are_costs() -> None:
    async def role(me: Coordinator) -> None:
        await me.compute(int, cost=np.float64(3.0))

    assert simulate({"a": role}, network=Network()).ledger.compute["a"].flops == 3.0
