"""One line without I/O: whatever is cut, all comes once and in order; whatever is said, it is bounded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.wire import line as module
from protocols.wire.line import CHUNK, LARGEST_FRAME, OVERHEAD, Limits, Line, RefusedError, weight
from protocols.wire.parties_pb2 import Ack, Bye, Chunk, Frame, Header, Hello
from protocols.wire.transport import Envelope

SESSIONS = {"bank": b"b" * 16, "shop": b"s" * 16}


def pair(limits: Limits | None = None) -> tuple[Line, Line]:
    limits = limits or Limits()
    return Line("bank", "shop", SESSIONS["bank"], limits), Line("shop", "bank", SESSIONS["shop"], limits)


def meet(bank: Line, shop: Line) -> None:
    shop.greet(bank.hello())
    bank.greet(shop.hello())


def envelope(body: bytes = b"body", sequence: int = 0, scope: str = "fit/1") -> Envelope:
    digest = hashlib.sha256(body).digest()
    return Envelope("job", "bank", "shop", scope, sequence, "test.Word/1", 3, digest, body)


def flow(source: Line, target: Line) -> list[Envelope]:
    came: list[Envelope] = []
    while (raw := source.next_frame()) is not None:
        assert len(raw) <= LARGEST_FRAME
        found = target.take(raw)
        came += [found] if found else []
    return came


def acknowledge(source: Line, target: Line) -> None:
    source.ack_due = True
    flow(source, target)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_an_envelope_arrives_as_it_was_sent(size: int) -> None:
    bank, shop = pair()
    meet(bank, shop)
    sent = envelope(bytes(i % 251 for i in range(1000)) * (size // 1000) + b"z" * (size % 1000))
    bank.queue(sent)
    assert flow(bank, shop) == [sent]
    assert bank.pending == 1
    acknowledge(shop, bank)
    assert bank.pending == 0 and bank.freed == weight(sent) == shop.arrived


@given(st.data())
@settings(max_examples=40)
def test_whatever_is_cut_everything_comes_once_and_in_order(data: st.DataObject) -> None:
    small = pytest.MonkeyPatch()
    small.setattr(module, "CHUNK", 4)
    small.setattr(module, "PROMPT", 16)
    try:
        bank, shop = pair()
        bodies = data.draw(st.lists(st.binary(max_size=20), max_size=8))
        to_send = [envelope(body, i) for i, body in enumerate(bodies)]
        came: list[Envelope] = []
        meet(bank, shop)
        for _ in range(80):
            step = data.draw(st.sampled_from(["queue", "there", "back", "ack", "cut"]))
            if step == "queue" and to_send:
                bank.queue(to_send.pop(0))
            elif step == "there" and (raw := bank.next_frame()) is not None:
                # A frame may be on its way when the line is cut.
                if data.draw(st.booleans()):
                    found = shop.take(raw)
                    came += [found] if found else []
                else:
                    meet(bank, shop)
            elif step == "back" and (raw := shop.next_frame()) is not None:
                bank.take(raw)
            elif step == "ack":
                shop.ack_due = True
            elif step == "cut":
                meet(bank, shop)
            if len(came) == len(bodies) and not bank.pending:
                break
        for e in to_send:
            bank.queue(e)
        meet(bank, shop)
        came += flow(bank, shop)
        acknowledge(shop, bank)
        assert [e.body for e in came] == bodies
        assert [e.digest for e in came] == [hashlib.sha256(body).digest() for body in bodies]
        assert bank.pending == 0
    finally:
        small.undo()


def test_a_replay_sends_the_same_bytes() -> None:
    bank, shop = pair()
    meet(bank, shop)
    bank.queue(envelope(b"x" * (2 * CHUNK)))
    first = [bank.next_frame(), bank.next_frame()]
    meet(bank, shop)
    assert [bank.next_frame(), bank.next_frame()] == first
    assert bank.retransmitted == 2 * CHUNK


def refused(call: Callable[[], object], status: str, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason) as found:
        call()
    assert found.value.status == status


def hello(**changed: Any) -> bytes:
    said: dict[str, Any] = {"version": 1, "party": "bank", "peer": "shop", "session": SESSIONS["bank"]}
    raw: bytes = Frame(hello=Hello(**{**said, **changed})).SerializeToString()
    return raw


@pytest.mark.parametrize(
    ("changed", "status", "reason"),
    [
        ({"version": 2}, "FAILED_PRECONDITION", "bank speaks version 2 of parties.proto, shop speaks 1"),
        ({"peer": "post"}, "PERMISSION_DENIED", "from 'bank' to 'post'"),
        ({"party": "post"}, "PERMISSION_DENIED", "from 'post' to 'shop'"),
        ({"session": b"short"}, "INVALID_ARGUMENT", "session of 5 bytes"),
        ({"received": 1}, "INVALID_ARGUMENT", "says it has chunk 1, sent were 0"),
        ({"peer_session": b"o" * 16}, "FAILED_PRECONDITION", "remembers an earlier process of shop"),
    ],
)
def test_a_hello_that_does_not_fit(changed: dict[str, object], status: str, reason: str) -> None:
    refused(lambda: pair()[1].greet(hello(**changed)), status, reason)


def test_a_process_that_was_restarted() -> None:
    bank, shop = pair()
    meet(bank, shop)
    refused(
        lambda: shop.greet(hello(session=b"n" * 16)), "FAILED_PRECONDITION", "came back as another process"
    )


def test_a_new_process_after_the_old_one_said_bye() -> None:
    bank, shop = pair()
    meet(bank, shop)
    shop.queue(envelope(b"never read"))
    bank.leaving = True
    flow(bank, shop)
    assert shop.left and shop.pending == 0
    refused(lambda: shop.greet(hello()), "ABORTED", "nothing more")
    meet(again := Line("bank", "shop", b"n" * 16, Limits()), shop)
    again.queue(envelope(b"again"))
    assert [e.body for e in flow(again, shop)] == [b"again"] and not shop.left


def header(**changed: Any) -> Header:
    said: dict[str, Any] = {"job": "j", "scope": "s", "sequence": 0, "kind": "k", "depth": 1, "size": 4}
    return Header(**{**said, **changed})


BODY = b"body"
ILL: dict[str, tuple[Any, str]] = {
    "no frame": (b"\xff\xff\xff", "are no Frame"),
    "empty": (b"", "frame that is none"),
    "hello twice": (hello(), "sent a hello in the middle"),
    "number": (Frame(chunk=Chunk(number=2, header=header(), data=BODY, last=True)), "chunk 2, expected 1"),
    "no header": (Frame(chunk=Chunk(number=1, data=BODY, last=True)), "without a header"),
    "short": (Frame(chunk=Chunk(number=1, header=header(), data=b"bod", last=True)), "sent 3 bytes, the"),
    "long": (Frame(chunk=Chunk(number=1, header=header(), data=b"body!", last=True)), "sent 5 bytes"),
    "not last": (Frame(chunk=Chunk(number=1, header=header(), data=BODY)), "sent 4 bytes where 4"),
    "small chunk": (Frame(chunk=Chunk(number=1, header=header(size=CHUNK + 1), data=BODY)), "where 1048576"),
    "huge": (Frame(chunk=Chunk(number=1, header=header(size=1 << 60))), "announces 1152921504606846976"),
    "scope": (Frame(chunk=Chunk(number=1, header=header(scope="s" * 513))), "scope above 512 bytes"),
    "kind": (Frame(chunk=Chunk(number=1, header=header(kind="a\nb"))), "kind above 128 bytes or not"),
    "ack of nothing": (Frame(ack=Ack(through=1)), "acknowledges chunk 1"),
    "ack of zero": (Frame(ack=Ack(through=0)), "acknowledges chunk 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", ILL)
def test_a_frame_that_may_not_come(case: str) -> None:
    said, reason = ILL[case]
    bank, shop = pair()
    meet(bank, shop)
    raw = said if isinstance(said, bytes) else said.SerializeToString()
    refused(lambda: shop.take(raw), "INVALID_ARGUMENT", reason)
    assert shop.arrived <= 4 + OVERHEAD + CHUNK + 1


def test_what_nobody_collects_is_bounded_before_it_is_taken() -> None:
    bank, shop = pair(Limits(held=3 * (100 + OVERHEAD)))
    meet(bank, shop)
    for i in range(4):
        bank.queue(envelope(b"x" * 100, i))
    refused(lambda: flow(bank, shop), "RESOURCE_EXHAUSTED", "that its role has not collected")
    assert shop.arrived == 3 * (100 + OVERHEAD)


def test_no_bye_in_the_middle_of_an_envelope() -> None:
    bank, shop = pair()
    meet(bank, shop)
    bank.queue(envelope(b"x" * (CHUNK + 1)))
    assert shop.take(bank.next_frame() or b"") is None
    refused(lambda: shop.take(Frame(bye=Bye()).SerializeToString()), "INVALID_ARGUMENT", "in the middle")


texts = st.text(max_size=20)
counts = st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1))
headers = st.builds(
    Header, job=texts, scope=texts, sequence=counts, kind=texts, depth=st.integers(0, 9), size=counts
)
chunks = st.builds(
    Chunk, number=counts, header=st.none() | headers, data=st.binary(max_size=30), last=st.booleans()
)
hellos = st.builds(
    Hello, version=st.just(1), party=st.just("bank"), peer=st.just("shop"), session=st.binary()
)
frames = st.one_of(
    st.builds(Frame, chunk=chunks),
    st.builds(Frame, ack=st.builds(Ack, through=counts)),
    st.builds(Frame, hello=hellos),
    st.just(Frame(bye=Bye())),
).map(lambda frame: frame.SerializeToString())


@given(st.booleans(), st.lists(st.one_of(frames, st.binary(max_size=40)), max_size=8))
@settings(max_examples=150)
def test_anything_is_taken_or_refused(greeted: bool, said: list[bytes]) -> None:
    bank, shop = pair()
    refusal: RefusedError | None = None
    if greeted:
        meet(bank, shop)
    try:
        for i, raw in enumerate(said):
            if i == 0 and not greeted:
                shop.greet(raw)
            else:
                found = shop.take(raw)
                assert found is None or (found.sender, found.receiver) == ("bank", "shop")
    except RefusedError as error:
        refusal = error
    if refusal is not None:
        assert refusal.status in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "PERMISSION_DENIED", "ABORTED")
        assert str(refusal).isprintable() and len(str(refusal)) < 300
    # No more than what came is held, whatever was announced.
    held = shop._partial.body.tell() if shop._partial else 0
    assert held <= sum(map(len, said))
