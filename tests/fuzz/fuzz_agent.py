"""What two peers say to a party that serves, on real streams, and whether a third is served all the same."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar
from unittest import mock

import grpc
import pandas as pd

from protocols.network.frames import CONTROL, Limits, chunk
from protocols.network.grpc import Grpc
from protocols.network.link import METHOD
from protocols.network.parties_pb2 import Ack, Bye, Frame, Hello, Ping
from protocols.service.agent import Agent
from protocols.service.config import read_config
from protocols.service.jobs import KINDS, SCOPE, Answer, Cancel, Control, Ended, Renew, Word
from protocols.service.journal import Notes
from protocols.service.store import Store
from protocols.wire.codec import encode
from protocols.wire.transport import Envelope
from tests.fuzz import target
from tests.fuzz.fuzz_wire import joined, split
from tests.protocols.service.test_agent import spoken, trivial
from tests.support.granted import rule
from tests.support.served import lay_out

T = TypeVar("T")
SOON = 1.0  # seconds that the two may cost the third
LIMITS = Limits(streams=1_000_000)
PEERS = ("mill", "post")  # granted all, and nothing
RAW, SAID, BODY, ANEW = range(
    4
)  # what a piece of the input is: a frame, a word, a word's body, a stream's end
NAMES = sorted(KINDS)
WORDS: list[Word] = [
    word
    for job in ("0" * 16, "f" * 16)
    for word in (*spoken(job, 1, "mill"), Renew(job=job, attempt=1), Cancel(job=job, attempt=1))
]


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def do(self, work: Coroutine[Any, Any, T], within: float = 60.0) -> T:
        """Its result, for whoever is elsewhere."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(within)


class Stage:
    """`telco` serves; the bank calls it as it should."""

    def __init__(self) -> None:
        folder = Path(mkdtemp(prefix="vfl-fuzz-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        everybody = {party: None for party in ("bank", *PEERS)}
        lay_out(folder, {**everybody, "telco": pd.DataFrame({"id": [1], "x": [0.0]})})
        config, parties = read_config(folder / "telco.toml")
        self._config = config.model_copy(update={"policy": (rule(peers=("bank", "mill")),)})
        self._parties, self._book = parties, {**everybody, "telco": "127.0.0.1:0"}
        self._there, self._here = Loop(), Loop()
        self.address = self._there.do(self._serve())
        self._control = self._here.do(self._call())
        self.channels = [grpc.insecure_channel(self.address) for _ in PEERS]
        self.usual = max(self.seconds() for _ in range(3))

    async def _serve(self) -> str:
        telco = Grpc("telco", self._book, insecure=True, limits=LIMITS)
        agent = Agent(self._config, self._parties, telco, Notes(Store(self._config.store), "telco"))
        await telco.__aenter__()
        self._serving = asyncio.create_task(agent.serve())
        return str(telco.address)

    async def _call(self) -> Control:
        bank = Grpc("bank", {"bank": None, "telco": self.address}, insecure=True)
        control = Control(bank.for_job(CONTROL), "bank")
        await bank.__aenter__()
        return control

    def seconds(self) -> float:
        """That a whole job of the bank's takes."""
        begin = time.monotonic()
        while not self._here.do(self._job(os.urandom(8).hex())):
            time.sleep(0.02)
        return time.monotonic() - begin

    async def _job(self, job: str) -> bool:
        """Whether it was taken up; then it is done."""

        async def hear(kind: type[Word], *states: str) -> Word:
            while True:
                word = await self._control.hear("telco")
                due = word.state in states if isinstance(word, Answer) else True
                if word.job == job and isinstance(word, kind) and due:
                    return word

        answers: list[tuple[type[Word], str]]
        answers = [(Answer, "ready"), (Answer, "claimed"), (Answer, "agreed"), (Ended, ""), (Ended, "")]
        *words, over = spoken(job, 1)
        for word, (kind, state) in zip(words, answers, strict=True):
            await self._control.say("telco", word)
            heard = await hear(kind, state, "refused")
            if isinstance(heard, Answer) and heard.state == "refused":
                return False
        await self._control.say("telco", over)
        return True

    @property
    def serves(self) -> bool:
        """Whether the agent has not ended."""
        return not self._serving.done()


class Stream:
    """One that a peer has opened, and says Hello on as a new process."""

    def __init__(self, channel: grpc.Channel, peer: str) -> None:
        self.peer, self._sent = peer, 0
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._call = channel.stream_stream(METHOD)(iter(self._frames.get, None), timeout=10.0)
        hello = Hello(version=1, party=peer, peer="telco", session=os.urandom(16))
        self.say(Frame(hello=hello).SerializeToString())

    def say(self, raw: bytes) -> None:
        self._frames.put(raw)

    def tell(self, kind: str, body: bytes) -> None:
        """A word about jobs, or what should be one."""
        self._sent += 1
        envelope = Envelope(CONTROL, self.peer, "telco", SCOPE, self._sent, kind, 1, b"", body)
        self.say(chunk(self._sent, envelope, 0, len(body)))

    def end(self) -> None:
        """Say no more, and wait until the telco has read it all, or ends it."""
        self._frames.put(None)
        with suppress(grpc.RpcError):
            for _ in self._call:
                pass


@contextmanager
def quietly() -> Iterator[None]:
    """No log, no disk that is waited for, and a program that ends at once."""
    found = trivial([])
    object.__setattr__(found, "schemas", lambda: "")
    logging.disable(logging.CRITICAL)
    try:
        with mock.patch("protocols.service.consent.program", return_value=found), mock.patch("os.fsync"):
            yield
    finally:
        logging.disable(logging.NOTSET)


@lru_cache(maxsize=1)
def stage() -> Stage:
    return Stage()


def conversations() -> list[bytes]:
    """Each piece after one byte: the peer, and what it is."""

    def of(peer: int, what: int, rest: bytes = b"") -> bytes:
        return bytes([peer | what << 1]) + rest

    both = range(len(PEERS))
    said = [of(peer, SAID, bytes([word])) for word in range(len(WORDS)) for peer in both]
    signs = (Frame(ping=Ping(number=3)), Frame(ack=Ack(room=1 << 40)), Frame(bye=Bye()))
    raw = [of(peer, RAW, frame) for peer in both for frame in (b"\xff\xff\xff", *map(_bytes, signs))]
    claims = [of(0, SAID, bytes([word])) for word in (0, 1, 8, 9)]
    bodies = [of(peer, BODY, bytes([kind]) + b"\xc1") for kind in range(len(NAMES)) for peer in both]
    unknown = [of(1, SAID, bytes([6]))] * 20
    anew = [of(0, ANEW), of(1, ANEW)]
    return [
        joined(pieces)
        for pieces in (raw[:1], said, claims, [*claims, *anew, *claims], raw, bodies, [*unknown, raw[5]])
    ]


def _bytes(frame: Frame) -> bytes:
    raw: bytes = frame.SerializeToString()
    return raw


@target(conversations)
def agent(raw: bytes) -> None:
    """Any frames and words of two peers leave a third served within a second, and the agent at work."""
    with quietly():
        there = stage()
        streams = [Stream(channel, peer) for channel, peer in zip(there.channels, PEERS, strict=True)]
        for piece in split(raw):
            what, rest = (piece[0] >> 1 & 3, piece[1:]) if piece else (ANEW, b"")
            at = piece[0] & 1 if piece else 0
            if what == RAW:
                streams[at].say(rest)
            elif what == SAID:
                word = WORDS[rest[0] % len(WORDS) if rest else 0]
                streams[at].tell(word.kind, encode(word))
            elif what == BODY:
                streams[at].tell(NAMES[rest[0] % len(NAMES) if rest else 0], rest[1:])
            else:
                streams[at].end()
                streams[at] = Stream(there.channels[at], PEERS[at])
        seconds = there.seconds()
        for stream in streams:
            stream.end()
        assert there.serves, "the agent has ended"
        for _ in range(3):  # this machine may have had other things to do
            if seconds <= there.usual + SOON:
                return
            seconds = there.seconds()
        raise AssertionError(f"a third party waits for {seconds:.1f} s, usually for {there.usual:.1f} s")
