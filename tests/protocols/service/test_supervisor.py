"""Whatever any part of the agent raises, it goes on serving or ends with a reason, and never spins.

Every function that the agent comes through is made to raise, one at a time, while one caller talks to it.
Afterwards another one is served.
"""

from __future__ import annotations

import asyncio
import builtins
import errno
import gc
import inspect
import itertools
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import grpc
import grpc.aio
import pandas as pd
import pytest
from pydantic import BaseModel, ValidationError

from protocols import errors, files, parts, programs
from protocols.data import sources
from protocols.errors import VflError
from protocols.policy import history, judge
from protocols.record import file, rows
from protocols.service import (
    agent,
    attempt,
    config,
    consent,
    conversation,
    health,
    jobs,
    journal,
    role,
    store,
)
from protocols.service.config import Parties, PartyConfig, read_config
from protocols.wire import codec
from tests.protocols.service import test_agent
from tests.protocols.service.test_agent import Wire, honest, trivial, whole
from tests.protocols.service.test_agent import serving as served
from tests.support.networked import POLICY
from tests.support.served import lay_out

T = TypeVar("T")
# Whoever is made to raise does not await what it was given.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
MODULES = (
    *(agent, attempt, config, consent, health, history, conversation, jobs, journal, parts, judge, programs),
    *(role, sources, codec, file, files, rows, store),
)
WINDOW = 0.08  # seconds for which something raises
MOST = 100  # times that it is called meanwhile
NEVER = {"Agent.serve", "Health.watched"}  # they are the whole, not a part


class Panic(BaseException):
    """As what libraries written in Rust raise."""


def invalid() -> ValidationError:
    class Whole(BaseModel):
        number: int

    try:
        Whole.model_validate({"number": "x"})
    except ValidationError as error:
        return error
    raise AssertionError


def enumerated() -> dict[str, BaseException]:
    """An error of every kind, of ours, of Python, of the system and of the libraries."""
    found: dict[str, BaseException] = {"ValidationError": invalid(), "Panic": Panic("in Rust")}
    ours = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, VflError)]
    python = [
        kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    loop = [asyncio.CancelledError, asyncio.InvalidStateError, asyncio.QueueFull, grpc.aio.UsageError]
    for kind in (*ours, *python, *loop):
        if issubclass(kind, Warning | ExceptionGroup | UnicodeError) or kind is StopIteration:
            continue  # they are no errors, or cannot leave a coroutine
        found[kind.__name__] = kind("injected")
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EROFS, errno.EIO, errno.ENOMEM):
        found[errno.errorcode[number]] = OSError(number, os.strerror(number))
    found["AioRpcError"] = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata()
    )
    return found


ERRORS = enumerated()


def functions(module: ModuleType) -> Iterator[tuple[str, Any, str]]:
    """Name, owner and attribute of each function and method that `module` defines."""
    for name, value in vars(module).items():
        if getattr(value, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, module, name
        elif inspect.isclass(value):
            for method, raw in vars(value).items():
                if inspect.isfunction(raw) and not method.startswith("__"):
                    yield f"{name}.{method}", value, method


SITES = {
    f"{module.__name__.rpartition('.')[2]}.{name}": (owner, attribute)
    for module in (*MODULES, test_agent)
    for name, owner, attribute in functions(module)
    if (module is not test_agent or name.startswith(("Wire.", "Post."))) and name not in NEVER
}
del SITES["test_agent.Wire.say"], SITES["test_agent.Wire.for_job"]  # the test's own


class Replaced:
    """`site`, as long as it is entered: counts its calls, and raises `error` if there is one."""

    def __init__(self, site: str, error: BaseException | None = None) -> None:
        self._owner, self._name = SITES[site]
        self._honest = self._now = getattr(self._owner, self._name)
        self._error, self.calls = error, 0

    def _call(self, *args: Any, **more: Any) -> Any:
        self.calls += 1
        if self.calls > 10 * MOST:
            self.__exit__()  # enough of it: what spins would not let us say so
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._honest(*args, **more)

    async def _await(self, *args: Any, **more: Any) -> Any:
        return await self._call(*args, **more)

    def __enter__(self) -> Replaced:
        wrapper = self._await if inspect.iscoroutinefunction(self._honest) else self._call
        self._set(lambda *args, **more: wrapper(*args, **more))
        return self

    def __exit__(self, *_: object) -> None:
        self._set(self._honest)

    def _set(self, after: Callable[..., Any]) -> None:
        """Wherever it is known by its name, too."""
        before, self._now = self._now, after
        if isinstance(self._owner, type):
            setattr(self._owner, self._name, after)
            return
        for name, module in list(sys.modules.items()):
            if name.startswith("protocols.") and vars(module).get(self._name) is before:
                setattr(module, self._name, after)


@contextmanager
def quick() -> Iterator[None]:
    """No disk is waited for, and no turn kept for long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(attempt, "CLAIMED", 0.05)
        patch.setattr(attempt, "PREPARED", 0.05)
        patch.setattr(conversation, "POLL", 0.02)
        patch.setattr("protocols.service.steady.LATEST", 0.1)
        patch.setattr(agent, "ENOUGH", 1e9)
        patch.setattr(agent, "TOO_MUCH", 1e9)
        found = trivial([])
        object.__setattr__(found, "schemas", lambda: "")
        patch.setattr(consent, "program", lambda name: found)
        yield
    gc.collect()  # what was left behind is told of here, and not in another test


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[PartyConfig, Parties]:
    folder = tmp_path_factory.mktemp("supervised")
    lay_out(folder, {"bank": None, "mill": None, "telco": pd.DataFrame({"id": [1], "x": [0.0]})}, POLICY)
    return read_config(folder / "telco.toml")


class Talk:
    """Two callers of one agent, which goes on for as long as there is something to try."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self._numbers = wire, itertools.count()

    def words(self) -> list[tuple[str, bytes]]:
        """All that there is to say about two jobs."""
        return [word for _ in range(2) for word in whole(f"{next(self._numbers):016x}", 1)]

    async def all_at_once(self, words: Sequence[tuple[str, bytes]]) -> None:
        """The bank says them, whatever it hears."""
        for word in words:
            self._wire.say("bank", *word)
        await asyncio.sleep(WINDOW)

    async def properly(self) -> None:
        """The mill asks for a whole job, as it should."""
        while not self._wire.said["mill"].empty():
            self._wire.said["mill"].get_nowait()
        async with asyncio.timeout(10.0):
            await honest(self._wire, f"{next(self._numbers):016x}", caller="mill")

    async def check(self, site: str, error: str) -> None:
        """The law, for one error at one place."""
        words = self.words()
        with Replaced(site, ERRORS[error]) as raising:
            await self.all_at_once(words)
        assert raising.calls <= MOST, f"{site} spins on {error}: {raising.calls} calls"
        try:
            await self.properly()
        except TimeoutError:
            raise AssertionError(f"after {error} in {site} nobody is served") from None


async def supervise(
    trial: tuple[PartyConfig, Parties], store: Path, work: Callable[[Talk], Coroutine[Any, Any, T]]
) -> T:
    config, parties = trial
    wire = Wire()
    async with served(config.model_copy(update={"store": store}), parties, wire):
        return await work(Talk(wire))


@pytest.fixture(scope="module")
def active(trial: tuple[PartyConfig, Parties], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The functions that the agent comes through when it is asked for a job, or told nonsense."""

    async def ask(talk: Talk) -> None:
        await talk.properly()
        await talk.all_at_once(talk.words())

    with quick(), ExitStack() as stack:
        counting = {site: stack.enter_context(Replaced(site)) for site in SITES}
        asyncio.run(supervise(trial, tmp_path_factory.mktemp("active"), ask))
    return [site for site, counted in counting.items() if counted.calls]


def test_there_is_something_to_check(active: list[str]) -> None:
    known = {"agent.Agent._listen", "agent.Agent._close", "consent.Consent.admit", "store.Store.save"}
    assert known | {"files.write_whole", "sources.read_table", "test_agent.Post.collect"} <= {*active}
    assert {"Panic", "CancelledError", "EMFILE", "MemoryError", "LineError", "KeyError"} <= {*ERRORS}


@pytest.mark.parametrize("part", range(4))
def test_whatever_any_part_of_the_agent_raises(
    trial: tuple[PartyConfig, Parties], tmp_path: Path, active: list[str], part: int
) -> None:
    """Each part once; the kinds of errors take turns."""

    async def go(talk: Talk) -> None:
        for site, error in [*zip(active, itertools.cycle(ERRORS), strict=False)][part::4]:
            await talk.check(site, error)

    with quick():
        asyncio.run(supervise(trial, tmp_path, go))


@pytest.mark.parametrize("site", ["jobs.Control.hear", "test_agent.Post.deliver"])
def test_whatever_the_agents_own_tasks_meet(
    trial: tuple[PartyConfig, Parties], tmp_path: Path, site: str
) -> None:
    """Every kind of error, where words are heard and said."""

    async def go(talk: Talk) -> None:
        for error in ERRORS:
            await talk.check(site, error)

    with quick():
        asyncio.run(supervise(trial, tmp_path, go))


@pytest.mark.long
@pytest.mark.parametrize("error", ERRORS)
def test_whatever_every_part_of_the_agent_raises(
    trial: tuple[PartyConfig, Parties], tmp_path: Path, active: list[str], error: str
) -> None:
    async def go(talk: Talk) -> None:
        for site in active:
            await talk.check(site, error)

    with quick():
        asyncio.run(supervise(trial, tmp_path, go))
