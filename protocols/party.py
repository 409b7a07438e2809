"""Party: one participant's end of every line. A role is a coroutine that speaks only through it.

    async def client(me: Party, server: str, ...) -> Result:
        async with me.within("round 1") as at:      # a sub-conversation
            order = await at.recv(server, Model)
            ...
            await at.send(server, Update(...))

What a party's peers learn is exactly the messages it sends; each says what it `reveals`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, overload

import numpy as np
from torch import nn

from protocols.arrays import Arrays
from protocols.costs import Cost
from protocols.errors import ConfigError, PartyError, PolicyError, ProtocolError, VflError, marked
from protocols.flops import forward_flops
from protocols.randomness import drawn_seed, key_of, new_seed, philox, torch_seeded
from protocols.wire.codec import decode, encode
from protocols.wire.ledger import Ledger
from protocols.wire.message import Message
from protocols.wire.transport import Envelope, Names, Network

M = TypeVar("M", bound=Message)
N = TypeVar("N", bound=Message)
T = TypeVar("T")
_SMALL = 1 << 18  # bytes


class Guard(Protocol):
    """The checks of a party's own policy while its role runs; each raises PolicyError to refuse.

    `announced` and `rows` write to a disk: call them by `Party.compute`.
    """

    def announced(self, peer: str, ids: int, most: int) -> None:
        """Call with how many ids `peer` announces, before it can learn which are here; at `most` so many
        match."""

    def rows(self, ids: Iterable[bytes]) -> None:
        """Call with the canonical ids of the rows that a run uses, as soon as they are known."""

    def intersection(self, rows: int) -> None:
        """Check the number of matched rows, or an upper bound of it, where their ids are not known here."""

    def group(self, rows: int) -> None:
        """Call before a statistic leaves, with the number of rows behind it."""

    def learns(self, ids: Iterable[bytes]) -> None:
        """Call with the canonical ids of the rows that a model learns from, where they are only some of those
        that `rows` was told of. It writes to a disk: call it by `Party.compute`."""

    def difference(self, rows: int) -> None:
        """Call before statistics over another set of rows leave, with how many rows are either in this set or
        in an earlier one of the same run."""

    def protocol(self, name: str) -> None:
        """Call before ids are compared, and anything for that leaves, with the protocol's name or "auto"."""

    def lets(self, protocol: str) -> bool:
        """Return whether the policy lets ids be compared by `protocol`."""


class Unguarded:
    """The guard of a party without a policy. It checks nothing and refuses nothing."""

    def announced(self, peer: str, ids: int, most: int) -> None: ...

    def rows(self, ids: Iterable[bytes]) -> None: ...

    def intersection(self, rows: int) -> None: ...

    def group(self, rows: int) -> None: ...

    def learns(self, ids: Iterable[bytes]) -> None: ...

    def difference(self, rows: int) -> None: ...

    def protocol(self, name: str) -> None: ...

    def lets(self, protocol: str) -> bool:
        return True


class Checkpoints(Protocol):
    """Storage for the state from which a party resumes after a crash."""

    def latest(self) -> tuple[int, Arrays | None]:
        """Return the agreed number of steps done and this party's state after them; (0, None) at first."""

    def save(self, done: int, state: Arrays) -> None:
        """Keep `state` after `done` steps, whole or not at all."""

    def alignment(self) -> Arrays | None:
        """Return which rows are common, if all agreed to reuse those of an earlier attempt."""

    def save_alignment(self, state: Arrays) -> None:
        """Keep which rows are common, whole or not at all."""


class Resumable(Protocol):
    """A training state that can be copied out and written back, so that training can resume from it."""

    def snapshot(self) -> Arrays: ...

    def restore(self, state: Arrays) -> None: ...


@dataclass(slots=True)
class Desk:
    """The things of which a party has only one, shared by all scopes in which it speaks."""

    name: str
    ledger: Ledger  # also the transport
    seed: int = field(default_factory=new_seed, repr=False)  # its own; over a network, no other party's
    job: str = "local"
    parties: tuple[str, ...] = ()  # all that take part, this one too or not
    network: Network | None = None  # set under a virtual clock that charges for computing
    threaded: bool = False  # compute in a worker thread, so that the party stays reachable
    depth: int = 0  # longest chain of dependent messages received so far
    busy_until: float = 0.0  # virtual seconds
    on_progress: Callable[[str, int, int], None] | None = None
    checkpoints: Checkpoints | None = None  # set where a run outlives its processes
    guard: Guard = field(default_factory=Unguarded)
    speaks: frozenset[str] | None = None  # the kinds of messages that were granted; None: all


@dataclass(slots=True, eq=False)
class Party:
    """A name, a transport, randomness of its own, and the scope it speaks in."""

    desk: Desk = field(repr=False)
    scope: str = ""
    _sent: dict[str, int] = field(default_factory=dict, repr=False)  # envelopes per receiver
    _opened: Names | None = field(default=None, repr=False)  # scopes directly below this one

    @property
    def name(self) -> str:
        """This party's name."""
        return self.desk.name

    @property
    def guard(self) -> Guard:
        """The guard to ask before doing anything that a policy may refuse."""
        return self.desk.guard

    async def send(self, to: str, message: Message) -> None:
        """Send `message` to party `to`, in this scope."""
        body = encode(message)
        await self._deliver(to, message.kind, body, hashlib.sha256(body).digest())

    async def _deliver(self, to: str, kind: str, body: bytes, digest: bytes) -> None:
        desk = self.desk
        if desk.speaks is not None and kind not in desk.speaks:
            raise PolicyError(f"{kind} is not among the messages that this job was granted to send")
        sequence = self._sent.get(to, 0)
        self._sent[to] = sequence + 1
        await desk.ledger.deliver(
            Envelope(desk.job, desk.name, to, self.scope, sequence, kind, desk.depth + 1, digest, body)
        )

    @overload
    async def recv(self, sender: str, kind: type[M], *, like: Arrays | None = None) -> M: ...
    @overload
    async def recv(
        self, sender: str, kind: tuple[type[M], type[N]], *, like: Arrays | None = None
    ) -> M | N: ...
    async def recv(self, sender: str, kind: Any, *, like: Arrays | None = None) -> Any:
        """Wait for the next message from `sender` in this scope, which must be a `kind` (or one of several).

        `like`: every `Arrays` field must have these names, shapes and dtypes. ProtocolError otherwise.
        """
        desk = self.desk
        e = await desk.ledger.collect(desk.name, sender, self.scope)
        if e.depth > desk.depth:
            desk.depth = e.depth
        kinds = kind if isinstance(kind, tuple) else (kind,)
        for expected in kinds:
            if e.kind == expected.kind:
                break
        else:
            said = " or ".join(k.kind for k in kinds)
            raise ProtocolError(f"expected {said} from {sender} in {self.scope!r}, got {e.kind}")
        message = _read(expected, e.body, sender, self.scope)
        if like is not None:
            for name, value in message.__dict__.items():  # pydantic's own iterator is slow
                if isinstance(value, Arrays) and not value.like(like):
                    raise ProtocolError(
                        f"{e.kind}.{name} from {sender} in {self.scope!r}: expected {like!r}, got {value!r}; "
                        "do both sides use the same model?"
                    )
        return message

    def within(self, name: str | int) -> Self:
        """This party in a sub-conversation, used as `async with me.within(name) as at`. Leaving it
        discards its late mail. ConfigError for a name that was used, is empty or holds a slash."""
        said = str(name)
        if self._opened is None:
            self._opened = Names()
        if not said or "/" in said or said in self._opened:
            raise ConfigError(f"within({name!r}) in {self.scope!r}: needs a new name, without slashes")
        self._opened.add(said)
        return type(self)(self.desk, f"{self.scope}/{said}" if self.scope else said)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        desk = self.desk
        desk.ledger.close(desk.name, self.scope)
        if error is not None:
            mark(error, desk.name, self.scope)

    def rng(self, purpose: str = "") -> np.random.Generator:
        """Return a generator from this party's own seed, distinct for each party, scope and purpose.

        Over a network no other party can draw the same: what several need alike, one draws and sends.
        Never for keys, masks or nonces: those come from the operating system itself.
        """
        return philox(self.key(purpose))

    def key(self, purpose: str = "") -> int:
        """Return the key of `rng(purpose)`, to be kept where a later job has to draw the same numbers."""
        return key_of(self.desk.seed, self.name, self.scope, purpose)

    async def compute(
        self,
        fn: Callable[..., T],
        *args: Any,
        cost: Cost | None = None,
        rng: np.random.Generator | None = None,
    ) -> T:
        """`fn(*args)`, metered. `cost`: FLOPs, or counts of priced operations (`costs`); a torch module's own
        forward pass is counted by itself. `rng`: torch draws from it inside `fn` (dropout, shuffling)."""
        desk = self.desk
        if cost is None and isinstance(fn, nn.Module):
            cost = forward_flops(fn, *args)
        if cost is None and desk.network is not None:
            raise ConfigError(
                f"{getattr(fn, '__name__', fn)} runs under a virtual clock and declares no cost="
            )
        start = perf_counter()
        if desk.threaded:
            result = await asyncio.to_thread(_call, fn, args, rng)
        else:
            result = fn(*args) if rng is None else _call(fn, args, rng)
        work = desk.ledger.charge(self.name, cost, perf_counter() - start)
        if desk.network is not None and work:
            loop = asyncio.get_running_loop()
            desk.busy_until = max(loop.time(), desk.busy_until) + desk.network.seconds(self.name, work)
            await asyncio.sleep(desk.busy_until - loop.time())
        return result

    def resumed(self) -> tuple[int, Arrays | None]:
        """Return the steps (epochs, rounds) done before this process, and the state to resume from."""
        return (0, None) if self.desk.checkpoints is None else self.desk.checkpoints.latest()

    def checkpoint(self, done: int, state: Callable[[], Arrays]) -> None:
        """Keep `state()`, from which to resume after `done` steps. No effect where runs are not kept."""
        if self.desk.checkpoints is not None:
            self.desk.checkpoints.save(done, state())

    def alignment(self) -> Arrays | None:
        """Return what `keep_alignment` kept, if all parties reuse it; then no ids are compared again."""
        return None if self.desk.checkpoints is None else self.desk.checkpoints.alignment()

    def keep_alignment(self, state: Callable[[], Arrays]) -> None:
        """Keep `state()`, the common rows, to resume after a crash. No effect where runs are not kept."""
        if self.desk.checkpoints is not None:
            self.desk.checkpoints.save_alignment(state())

    def steps(self, total: int, keep: Resumable | None, *, begin: int = 0, progress: str = "") -> Steps[Self]:
        """Return the remaining steps (epochs, rounds, trees) out of `total`, each in a scope below "fit".

            for step in me.steps(epochs, trainer, progress="epochs"):
                async with step as at:
                    ...

        Training goes on from where an earlier process came to: `keep` is restored at once, and its state kept
        after each step; None keeps the number of steps alone. begin: steps of a training that this one
        continues. progress: what steps are called to whoever watches. `break` ends the training.
        """
        done, state = self.resumed()
        if state is not None and keep is not None:
            keep.restore(state)
        return Steps(self, total, keep, progress, max(done, begin), state is not None)

    def progress(self, step: str, done: int, total: int) -> None:
        """Tell whoever watches how far this party is."""
        if self.desk.on_progress is not None:
            self.desk.on_progress(step, done, total)


P = TypeVar("P", bound=Party)


@dataclass(slots=True, eq=False)
class Steps(Generic[P]):
    """The remaining steps of a training, as `Party.steps` returns them. They can be iterated once."""

    me: P = field(repr=False)
    total: int
    keep: Resumable | None = field(repr=False)
    progress: str
    done: int  # how many are done by now
    resumed: bool  # whether an earlier process did some of them

    def __iter__(self) -> Iterator[Step[P]]:
        fit = self.me.within("fit")
        try:
            for number in range(self.done, self.total):
                yield Step(self, fit, number)
        finally:
            self.me.desk.ledger.close(fit.name, fit.scope)


@dataclass(slots=True, eq=False)
class Step(Generic[P]):
    """One step of a training, used once as an async context."""

    steps: Steps[P]
    fit: P
    number: int  # from 0
    _at: P | None = None
    _counts: bool = True

    @property
    def is_last(self) -> bool:
        """Return whether this is the last step."""
        return self.number + 1 == self.steps.total

    def leave_out(self) -> None:
        """Declare that nothing was trained in this step, so it is not counted and nothing of it is kept."""
        self._counts = False

    async def __aenter__(self) -> P:
        self._at = self.fit.within(self.number)
        return self._at

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._at is not None
        await self._at.__aexit__(kind, error, trace)
        if error is not None or not self._counts:
            return
        steps = self.steps
        steps.done = self.number + 1
        with marked(self.fit.name, self.fit.scope):
            self.fit.checkpoint(steps.done, Arrays if steps.keep is None else steps.keep.snapshot)
        if steps.progress:
            self.fit.progress(steps.progress, steps.done, steps.total)


class Coordinator(Party):
    """A party with a roster: the star's verbs, over the same lines."""

    __slots__ = ()

    @property
    def roster(self) -> tuple[str, ...]:
        """All others that take part, in the order given."""
        return tuple(party for party in self.desk.parties if party != self.desk.name)

    async def broadcast(self, message: Message, to: Iterable[str] | None = None) -> None:
        """Send one message to all of `to` (default: the roster); it is encoded once."""
        body = encode(message)
        digest = hashlib.sha256(body).digest()
        for peer in self.roster if to is None else to:
            await self._deliver(peer, message.kind, body, digest)

    async def gather(
        self,
        kind: type[M],
        of: Iterable[str] | None = None,
        *,
        deadline: float | None = None,
        at_least: int | None = None,
        like: Arrays | None = None,
    ) -> dict[str, M]:
        """Wait for one `kind` from each of `of` (default: the roster), and return them in that order.

        With a `deadline` (seconds) the late are absent; fewer than `at_least` is a ProtocolError.
        """
        peers = self.roster if of is None else tuple(of)
        if deadline is None:
            return {peer: await self.recv(peer, kind, like=like) for peer in peers}
        loop = asyncio.get_running_loop()
        tasks = {peer: loop.create_task(self.recv(peer, kind, like=like)) for peer in peers}
        try:
            if tasks:
                await asyncio.wait(tasks.values(), timeout=deadline)
        finally:
            for task in tasks.values():
                task.cancel()  # no effect on those that are done
        # A cancelled wait leaves its line before the scope is closed.
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        came = {peer: task.result() for peer, task in tasks.items() if not task.cancelled()}
        if at_least is not None and len(came) < at_least:
            raise ProtocolError(
                f"{len(came)} of {len(peers)} sent {kind.kind} in {self.scope!r} within {deadline:g} s, "
                f"expected at least {at_least}; absent: {', '.join(p for p in peers if p not in came)}"
            )
        return came

    @asynccontextmanager
    async def arrivals(
        self, kind: type[M], of: Iterable[str] | None = None, *, like: Arrays | None = None
    ) -> AsyncIterator[AsyncIterator[tuple[str, M]]]:
        """Receive every `kind` from any of `of` (default: the roster) as it arrives, without an end.

            async with at.arrivals(Update) as coming:
                async for client, update in coming:
                    ...

        Several that are there at once come in the order of `of`. For rules that do not wait for all: floats
        that are summed in this order differ from run to run over a network. Whatever is on its way when it is
        left is late mail of this scope.
        """
        peers = self.roster if of is None else tuple(of)
        tasks: dict[str, asyncio.Task[M]] = {}

        async def coming() -> AsyncIterator[tuple[str, M]]:
            while True:
                for peer in peers:
                    if peer not in tasks:
                        tasks[peer] = asyncio.create_task(self.recv(peer, kind, like=like))
                await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
                for peer in peers:
                    if tasks[peer].done():
                        yield peer, tasks.pop(peer).result()

        try:
            yield coming()
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)


_latest: tuple[bytes, Message | None] = (b"", None)  # the small body that was read last, and its message


def _read(kind: type[M], body: bytes, sender: str, scope: str) -> M:
    """Decode a body, but decode a broadcast only once for all its receivers in one process."""
    global _latest
    seen, message = _latest
    if body is seen and type(message) is kind:
        return message
    message = decode(kind, body, sender=sender, scope=scope)
    # A large body is not copied when it is decoded, and would be kept here.
    if kind.is_flat and len(body) <= _SMALL:
        _latest = (body, message)
    return message


def forget() -> None:
    """Drop the last decoded message, so that no peer's data stays in memory after a run."""
    global _latest
    _latest = (b"", None)


def mark(error: BaseException | None, party: str, scope: str) -> None:
    """Mark an error of ours with where it arose; chain any other into a PartyError."""
    if isinstance(error, ExceptionGroup):  # of tasks that a role started: the first to fail is the cause
        mark(error.exceptions[0], party, scope)
        raise error.exceptions[0]
    if isinstance(error, VflError):
        error.at(party, scope)
    elif isinstance(error, Exception):
        raise PartyError(f"{type(error).__name__}: {error}").at(party, scope) from error


def _call(fn: Callable[..., T], args: tuple[Any, ...], rng: np.random.Generator | None) -> T:
    if rng is None:
        return fn(*args)
    with torch_seeded(drawn_seed(rng)):
        return fn(*args)


async def run(**roles: Coroutine[Any, Any, Any]) -> dict[str, Any]:
    """Run every role (party name -> coroutine) in this process to its end, and return their results.

    The first failure stops all of them and is raised, naming party, scope and cause.
    """

    fatal: list[BaseException] = []

    async def role(name: str, body: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await body
        except Exception as error:
            mark(error, name, "")
            raise
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            # asyncio would leave its loop at once for Ctrl-C or an exit, and the other roles where they are.
            fatal.append(error)
            raise PartyError(f"{type(error).__name__}").at(name, "") from None

    failed: ExceptionGroup[Exception] | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(role(name, body), name=name) for name, body in roles.items()}
    except* Exception as failures:
        failed = failures  # what is raised inside `except*` would come out as a group again
    finally:
        forget()
    if fatal:
        raise fatal[0]
    if failed is not None:
        raise failed.exceptions[0]
    for name, task in tasks.items():
        if task.cancelled():
            raise PartyError("CancelledError: the role cancelled itself").at(name, "")
    return {name: task.result() for name, task in tasks.items()}


Role = Callable[[Coordinator], Coroutine[Any, Any, Any]]


@dataclass(frozen=True)
class Run:
    """The outcome of a run: each role's result, the ledger, and simulated seconds (0 without a network)."""

    results: dict[str, Any]
    ledger: Ledger
    seconds: float
    job: str = ""  # over a network: which one it was
