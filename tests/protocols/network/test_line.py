"""One line without I/O: whatever is cut, all comes once and in order; whatever is said, it is bounded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.network import incoming, outgoing
from protocols.network.frames import (
    CHUNK,
    CONTROL,
    FINAL,
    LARGEST_FRAME,
    OVERHEAD,
    Limits,
    RefusedError,
    ToldError,
    chunk,
    parse_hello,
    weight,
)
from protocols.network.line import Line
from protocols.network.parties_pb2 import Ack, Bye, Chunk, Frame, Header, Hello, Ping, Refusal
from protocols.wire.transport import Envelope

SESSIONS = {"bank": b"b" * 16, "shop": b"s" * 16}
NOW = 1_800_000_000


def line(me: str, peer: str, limits: Limits | None = None, **more: Any) -> Line:
    said = {"session": SESSIONS[me], "limits": limits or Limits(), "now": lambda: NOW, **more}
    return Line(me, peer, **said)


def pair(limits: Limits | None = None) -> tuple[Line, Line]:
    return line("bank", "shop", limits), line("shop", "bank", limits)


def greet(line: Line, raw: bytes) -> None:
    line.greet(parse_hello(raw))


def meet(dialler: Line, dialled: Line) -> None:
    greet(dialled, dialler.hello())
    greet(dialler, dialled.hello())


def envelope(body: bytes = b"body", sequence: int = 0, scope: str = "fit/1", job: str = "job") -> Envelope:
    digest = hashlib.sha256(body).digest()
    return Envelope(job, "bank", "shop", scope, sequence, "test.Word/1", 3, digest, body)


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


def collect(line: Line, *envelopes: Envelope) -> None:
    """What the transport does when a role takes mail."""
    for e in envelopes:
        line.into.uncollected[e.job == CONTROL].left += weight(e)


@contextmanager
def small_chunks() -> Iterator[None]:
    small = pytest.MonkeyPatch()
    for module in (incoming, outgoing):
        small.setattr(module, "CHUNK", 4)
    small.setattr("protocols.network.line.PROMPT", 16)
    try:
        yield
    finally:
        small.undo()


# What arrives.


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_an_envelope_arrives_as_it_was_sent(size: int) -> None:
    bank, shop = pair()
    meet(bank, shop)
    sent = envelope(bytes(i % 251 for i in range(1000)) * (size // 1000) + b"z" * (size % 1000))
    bank.out.queue(sent)
    assert flow(bank, shop) == [sent]
    assert bank.out.pending == 1
    acknowledge(shop, bank)
    assert bank.out.pending == 0 and bank.out.kept[False].left == weight(sent)
    assert shop.into.uncollected[False].entered == weight(sent)


@given(
    st.integers(1, 2**64 - 1),
    st.binary(max_size=40),
    st.text(max_size=9),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_a_chunk_is_what_protobuf_would_write(number: int, body: bytes, scope: str, a: int, b: int) -> None:
    start, end = sorted((a, b))
    end = min(end, len(body))
    start = min(start, end)
    e = envelope(body, sequence=number, scope=scope)
    said = Chunk(number=number, data=body[start:end], last=end == len(body))
    if start == 0:
        said.header.CopyFrom(
            Header(job="job", scope=scope, sequence=number, kind="test.Word/1", depth=3, size=len(body))
        )
    assert chunk(number, e, start, end) == Frame(chunk=said).SerializeToString()


@given(st.data())
@settings(max_examples=60)
def test_whatever_is_cut_everything_comes_once_and_in_order(data: st.DataObject) -> None:
    """Through any cuts, acknowledgements, collections and mail about jobs in between."""
    with small_chunks():
        bank, shop = pair(Limits(uncollected=3 * OVERHEAD))
        bodies = data.draw(st.lists(st.binary(max_size=20), max_size=8))
        to_send = [envelope(body, i) for i, body in enumerate(bodies)]
        notes = [envelope(b"c%d" % i, i, job=CONTROL) for i in range(3)]
        to_say = list(notes)
        came: list[Envelope] = []

        def take(raw: bytes) -> None:
            found = shop.take(raw)
            if found is not None:
                came.append(found)

        meet(bank, shop)
        steps = ["queue", "say", "there", "back", "ack", "collect", "cut"]
        for _ in range(120):
            step = data.draw(st.sampled_from(steps))
            if step == "queue" and to_send:
                bank.out.queue(to_send.pop(0))
            elif step == "say" and to_say:
                bank.out.queue(to_say.pop(0))
            elif step == "there" and (raw := bank.next_frame()) is not None:
                # A frame may be on its way when the line is cut.
                if data.draw(st.booleans()):
                    take(raw)
                else:
                    meet(bank, shop)
            elif step == "back" and (raw := shop.next_frame()) is not None:
                bank.take(raw)
            elif step == "ack":
                shop.ack_due = True
            elif step == "collect" and shop.into.uncollected[False].held:
                shop.into.uncollected[False].left += OVERHEAD  # at least
                shop.ack_due = shop.into.grant(waiting=False)
            elif step == "cut":
                meet(bank, shop)
        for e in (*to_send, *to_say):
            bank.out.queue(e)
        meet(bank, shop)
        for _ in bodies:
            came += flow(bank, shop)
            shop.into.grant(waiting=True)
            acknowledge(shop, bank)
        came += flow(bank, shop)
        acknowledge(shop, bank)
        assert [e.body for e in came if e.job == "job"] == bodies
        assert [e for e in came if e.job == CONTROL] == notes
        assert all(e.digest == hashlib.sha256(e.body).digest() for e in came)
        assert bank.out.pending == 0 and bank.out.kept[False].held + bank.out.kept[True].held <= 0


def test_a_replay_sends_the_same_bytes() -> None:
    bank, shop = pair()
    meet(bank, shop)
    bank.out.queue(envelope(b"x" * (2 * CHUNK)))
    first = [bank.next_frame(), bank.next_frame()]
    meet(bank, shop)
    assert [bank.next_frame(), bank.next_frame()] == first
    assert bank.out.retransmitted == 2 * CHUNK


def test_mail_about_jobs_waits_neither_behind_a_large_envelope_nor_for_room() -> None:
    bank, shop = pair(Limits(uncollected=CHUNK))
    meet(bank, shop)
    large, more, note = envelope(bytes(3 * CHUNK)), envelope(b"more", 1), envelope(b"stop", job=CONTROL)
    bank.out.queue(large)
    bank.out.queue(more)
    assert shop.take(bank.next_frame() or b"") is None
    bank.out.queue(note)
    assert flow(bank, shop) == [note, large]  # `more` has no room
    bank.out.queue(envelope(b"again", 1, job=CONTROL))
    assert [e.body for e in flow(bank, shop)] == [b"again"]


def test_mail_for_a_job_that_is_not_open_is_acknowledged_counted_and_not_kept() -> None:
    bank, shop = line("bank", "shop"), line("shop", "bank", wanted=lambda job: job == "open")
    meet(bank, shop)
    bank.out.queue(envelope(bytes(3 * CHUNK), job="closed"))
    bank.out.queue(envelope(b"kept", job="open"))
    bank.out.queue(envelope(b"no", job=CONTROL))
    assert shop.take(bank.next_frame() or b"") is None  # the note
    for _ in range(3):
        assert shop.take(bank.next_frame() or b"") is None
        held = shop.into.partial
        assert held is None or not held.body.tell()
    assert [e.body for e in flow(bank, shop)] == [b"kept"]
    acknowledge(shop, bank)
    assert bank.out.pending == 0 and shop.into.discarded == 2
    assert shop.into.uncollected[False].held == 4 + OVERHEAD and shop.into.uncollected[True].held == 0


# Room.


def test_no_more_comes_than_there_is_room_for_until_it_is_collected() -> None:
    window = 4 * (100 + OVERHEAD)
    bank, shop = pair(Limits(uncollected=window))
    meet(bank, shop)
    mail = [envelope(bytes(100), i) for i in range(12)]
    for e in mail:
        bank.out.queue(e)
    came = flow(bank, shop)
    assert len(came) == 4 and shop.into.starving
    acknowledge(shop, bank)
    assert flow(bank, shop) == []
    collect(shop, came[0])
    assert not shop.into.grant(waiting=False)  # too little to speak of
    collect(shop, came[1])
    assert shop.into.grant(waiting=False)
    acknowledge(shop, bank)
    assert len(flow(bank, shop)) == 2
    # A role that waits for something else takes whatever comes.
    assert shop.into.grant(waiting=True)
    acknowledge(shop, bank)
    assert len(flow(bank, shop)) == 4


def test_room_that_an_acknowledgement_told_before_a_cut_is_told_again() -> None:
    bank, shop = pair(Limits(uncollected=OVERHEAD))
    meet(bank, shop)
    bank.out.queue(envelope())
    bank.out.queue(envelope(b"next", 1))
    collect(shop, *flow(bank, shop))
    shop.ack_due = shop.into.grant(waiting=False)
    assert shop.next_frame() is not None  # and is lost
    meet(bank, shop)
    assert [e.body for e in flow(bank, shop)] == [b"next"]


def test_beginning_without_room_is_refused() -> None:
    bank, shop = pair(Limits(uncollected=OVERHEAD))
    meet(bank, shop)
    bank.out.room = 1 << 40
    bank.out.queue(envelope())
    bank.out.queue(envelope(b"next", 1))
    refused(lambda: flow(bank, shop), "RESOURCE_EXHAUSTED", "without room for it")


def test_what_nobody_collects_is_bounded_before_it_is_taken() -> None:
    bank, shop = pair(Limits(held=3 * (100 + OVERHEAD)))
    meet(bank, shop)
    for i in range(4):
        bank.out.queue(envelope(b"x" * 100, i))
    refused(lambda: flow(bank, shop), "RESOURCE_EXHAUSTED", "that its role has not collected")
    assert shop.into.uncollected[False].held == 3 * (100 + OVERHEAD)


def test_mail_about_jobs_that_nobody_collects_is_bounded() -> None:
    bank, shop = pair(Limits(control=3 * (100 + OVERHEAD)))
    meet(bank, shop)
    for i in range(4):
        bank.out.queue(envelope(b"x" * 100, i, job=CONTROL))
    refused(lambda: flow(bank, shop), "RESOURCE_EXHAUSTED", "has not collected, and .* about jobs")


# Sessions.


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
        ({"received": 1, "peer_session": SESSIONS["shop"]}, "INVALID_ARGUMENT", "has chunk 1, sent were 0"),
        (
            {"clock": NOW - 86_400},
            "FAILED_PRECONDITION",
            "bank's clock says 2027-01-14 08:00 UTC, shop's 2027-01-15 08:00 UTC; set the wrong one",
        ),
        ({"clock": 2**64 - 1}, "FAILED_PRECONDITION", "set the wrong one"),
    ],
)
def test_a_hello_that_does_not_fit(changed: dict[str, object], status: str, reason: str) -> None:
    refused(lambda: greet(pair()[1], hello(**changed)), status, reason)


def test_clocks_that_differ_a_little_or_are_not_told_are_fine() -> None:
    for clock in (0, NOW - 800, NOW + 800):
        greet(pair()[1], hello(clock=clock))


@pytest.mark.parametrize("who", ["bank", "shop"])
def test_a_process_that_came_back_is_a_fresh_line_and_the_old_one_is_refused(who: str) -> None:
    bank, shop = pair()
    meet(bank, shop)
    for source, target in ((bank, shop), (shop, bank)):
        for body in (b"came", bytes(2 * CHUNK), b"queued"):
            source.out.queue(envelope(body))
        target.take(source.next_frame() or b"")
        target.take(source.next_frame() or b"")  # half an envelope
    old, stays = (bank, shop) if who == "bank" else (shop, bank)
    again = line(old.me, old.peer, session=b"n" * 16)
    meet(*((again, stays) if who == "bank" else (stays, again)))
    assert stays.restarts == 1 and stays.into.partial is None
    assert stays.out.pending == 0 and stays.out.kept[False].left == 2 * CHUNK + 10 + 3 * OVERHEAD
    assert stays.into.uncollected[False].held == 4 + OVERHEAD
    for source, target in ((again, stays), (stays, again)):
        acknowledge(target, source)
        source.out.queue(envelope(b"fresh"))
        assert [e.body for e in flow(source, target)] == [b"fresh"]
    refused(lambda: greet(stays, old.hello()), "FAILED_PRECONDITION", "another process of .* taken this one")


def test_a_peer_that_remembers_an_earlier_process_of_ours_is_heard() -> None:
    """Also twice, if our answer to its first Hello was lost."""
    shop = line("shop", "bank")
    for _ in range(2):
        greet(shop, hello(peer_session=b"o" * 16, received=7, room=1 << 50))
    assert shop.out.room == 0 and shop.restarts == 0


def test_a_new_process_after_the_old_one_said_bye() -> None:
    bank, shop = pair()
    meet(bank, shop)
    shop.out.queue(envelope(b"never read"))
    bank.leaving = True
    flow(bank, shop)
    assert shop.left and shop.out.pending == 0
    shop.ack_due = True  # as a timer may say that was set before
    assert shop.next_frame() is None
    refused(lambda: greet(shop, hello()), "ABORTED", "nothing more")
    meet(again := line("bank", "shop", session=b"n" * 16), shop)
    again.out.queue(envelope(b"again"))
    assert [e.body for e in flow(again, shop)] == [b"again"] and not shop.left
    assert shop.restarts == 0


def test_a_ping_is_answered_once_and_floods_of_them_are_forgotten() -> None:
    bank, shop = pair()
    meet(bank, shop)
    bank.ping(7)
    flow(bank, shop)
    flow(shop, bank)
    assert list(bank.answered) == [7] and flow(bank, shop) == []
    for number in range(1000):
        shop.take(Frame(ping=Ping(number=number)).SerializeToString())
    assert len(shop._unsaid) <= 16 and shop.idle == 1001


def test_a_refusal_is_passed_on_in_bounded_words() -> None:
    for said, status in (("PERMISSION_DENIED", "PERMISSION_DENIED"), ("OK", "FAILED_PRECONDITION")):
        bank, shop = pair()
        meet(bank, shop)
        frame = Frame(refusal=Refusal(status=said, reason="no\nline " + "x" * 9000))
        with pytest.raises(ToldError, match="bank refuses: .*: no line x") as found:
            shop.take(frame.SerializeToString())
        assert found.value.status == status and len(str(found.value)) < 600


# What may not be said.


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
    "large note": (Frame(chunk=Chunk(number=1, header=header(job="", size=CHUNK + 1))), "about jobs, shop"),
    "scope": (Frame(chunk=Chunk(number=1, header=header(scope="s" * 513))), "scope above 512 bytes"),
    "wide scope": (Frame(chunk=Chunk(number=1, header=header(scope="ß" * 257))), "scope above 512 bytes"),
    "kind": (Frame(chunk=Chunk(number=1, header=header(kind="a\nb"))), "kind above 128 bytes or not"),
    "ack of nothing": (Frame(ack=Ack(through=1)), "acknowledges chunk 1"),
    "ack of zero": (Frame(ack=Ack(through=0)), "acknowledges chunk 0"),
    "less room": (Frame(ack=Ack(room=5)), "room 5; expected 0 to 0, from 67108864 on, and more"),
}  # fmt: skip


@pytest.mark.parametrize("case", ILL)
def test_a_frame_that_may_not_come(case: str) -> None:
    said, reason = ILL[case]
    bank, shop = pair()
    meet(bank, shop)
    raw = said if isinstance(said, bytes) else said.SerializeToString()
    refused(lambda: shop.take(raw), "INVALID_ARGUMENT", reason)
    assert shop.into.uncollected[False].entered + shop.into.uncollected[True].entered == 0


def test_no_bye_in_the_middle_of_an_envelope() -> None:
    bank, shop = pair()
    meet(bank, shop)
    bank.out.queue(envelope(b"x" * (CHUNK + 1)))
    assert shop.take(bank.next_frame() or b"") is None
    refused(lambda: shop.take(Frame(bye=Bye()).SerializeToString()), "INVALID_ARGUMENT", "in the middle")


# Whatever is said. A peer's frames: lists of valid-looking ones, with numbers that often fit.

texts = st.text(max_size=20)
jobs = st.sampled_from(["", "job", "closed"]) | texts
counts = st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1))
headers = st.builds(
    Header, job=jobs, scope=texts, sequence=counts, kind=texts, depth=st.integers(0, 9), size=counts
)
chunks = st.builds(
    Chunk, number=counts, header=st.none() | headers, data=st.binary(max_size=30), last=st.booleans()
)
hellos = st.builds(
    Hello,
    version=st.just(1),
    party=st.sampled_from(["bank", "post"]),
    peer=st.just("shop"),
    session=st.sampled_from([b"b" * 16, b"n" * 16]) | st.binary(),
    peer_session=st.sampled_from([b"", b"s" * 16]) | st.binary(),
    received=counts,
    room=counts,
    clock=st.sampled_from([0, NOW]) | counts,
)
statuses = st.sampled_from(sorted(FINAL)) | texts
frames = st.one_of(
    st.builds(Frame, chunk=chunks),
    st.builds(Frame, ack=st.builds(Ack, through=counts, room=counts)),
    st.builds(Frame, hello=hellos),
    st.builds(Frame, ping=st.builds(Ping, number=counts, answer=st.booleans())),
    st.builds(Frame, refusal=st.builds(Refusal, status=statuses, reason=texts)),
    st.just(Frame(bye=Bye())),
).map(lambda frame: frame.SerializeToString())


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """Chunks that follow one another as they may, with anything in between: most get far."""
    said: list[bytes] = []
    number = 1
    for _ in range(draw(st.integers(0, 8))):
        body = draw(st.binary(max_size=20))
        job = draw(jobs)
        start = 0
        while start == 0 or start < len(body):
            piece = body[start : start + 4]
            last = start + 4 >= len(body)
            one = Chunk(number=number, data=piece, last=last)
            if start == 0:
                one.header.CopyFrom(Header(job=job, scope="s", kind="k", size=len(body)))
            said.append(Frame(chunk=one).SerializeToString())
            number, start = number + 1, start + 4
            if draw(st.integers(0, 9)) == 0:
                said.append(draw(frames))
    return said


def hold_to_the_bounds(said: list[bytes], greeted: bool) -> None:
    """Anything gives an envelope, nothing or a RefusedError in bounded words; no more is held than came."""
    bank, shop = line("bank", "shop"), line("shop", "bank", wanted=lambda job: job != "closed")
    if greeted:
        meet(bank, shop)
    refusal: RefusedError | None = None
    try:
        for i, raw in enumerate(said):
            if i == 0 and not greeted:
                greet(shop, raw)
                continue
            found = shop.take(raw)
            assert found is None or (found.sender, found.receiver) == ("bank", "shop")
            assert found is None or found.job != "closed"
            while (frame := shop.next_frame()) is not None:
                assert len(frame) <= LARGEST_FRAME
    except RefusedError as error:
        refusal = error
    if refusal is not None:
        assert refusal.status in {*FINAL, "ABORTED"}
        assert str(refusal).isprintable() and len(str(refusal)) < 700
    held = shop.into.partial.body.tell() if shop.into.partial else 0
    assert held <= sum(map(len, said))


@given(st.booleans(), st.lists(st.one_of(frames, st.binary(max_size=40)), max_size=8))
@settings(max_examples=150)
def test_anything_is_taken_or_refused(greeted: bool, said: list[bytes]) -> None:
    hold_to_the_bounds(said, greeted)


@given(conversations())
@settings(max_examples=150)
def test_any_sequence_of_envelopes_is_taken_or_refused(said: list[bytes]) -> None:
    with small_chunks():
        hold_to_the_bounds(said, True)
