"""Whatever a network does to a job: the undisturbed result, or one clear error at the caller in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from protocols.errors import CancelledJobError, LineError, VflError
from protocols.network.frames import Limits
from protocols.party import Role, Run
from protocols.service import attempt, caller, conversation, jobs
from protocols.service.caller import Connected
from protocols.service.role import serve_role
from protocols.wire import faults
from protocols.wire.transport import Transport
from tests.support.figures import SAME, left, many, noted
from tests.support.networked import ALL, POLICY, SEED, WHICH, Case, Outcome
from tests.support.seeds import known_seeds
from tests.support.served import lay_out
from tests.support.served import serving as served
from tests.support.weather import Proxies, proxied

LIMITS = Limits(patience=3.0, handshake=1.0, keepalive=0.5, again=1.0)
CALL = 5.0  # seconds to wait for a party that is away
# Seconds until an error: of each attempt, the waits for a party and for a line, and the pauses between them.
WAITS = caller.TRIES * (CALL + LIMITS.patience) + sum(0.1 * 2**tries for tries in range(caller.TRIES))


@dataclass
class Bad:
    """A method's parties, with the weather between them."""

    method: str
    case: Case
    all: Connected
    proxies: Proxies
    expected: Outcome
    undisturbed: float  # seconds that a job takes here

    def play(self, seed: int | None) -> VflError | None:
        """One fit and predict; the error that it ends with, if it does."""
        self.proxies.follow(seed)
        begin = time.monotonic()
        try:
            outcome = self.case.play(self.all)
        except VflError as error:
            return error
        finally:
            # An attempt may come to its last message each time, on a machine that became slower since.
            assert time.monotonic() - begin < WAITS + 5 * caller.TRIES * self.undisturbed
        self.expected.check(outcome)
        return None


@pytest.fixture(scope="module", params=WHICH)
def bad(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bad]:
    torch.set_num_threads(1)
    case = ALL[request.param]
    folder = tmp_path_factory.mktemp("bad")
    lay_out(folder, case.tables(), POLICY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversation, "LEASE", 5.0)
        patch.setattr(jobs, "RENEW", 1.0)
        with known_seeds(SEED), proxied(folder) as proxies, served(folder, *case.served, limits=LIMITS):
            own = case.tables()[case.caller]
            book = folder / f"{case.caller}-book.toml"
            with Connected(book, case.caller, own, limits=LIMITS, patience=CALL) as all_:
                expected, begin = case.here(), time.monotonic()
                expected.check(case.play(all_))
                yield Bad(request.param, case, all_, proxies, expected, time.monotonic() - begin)


def survives(bad: Bad, seed: int) -> str:
    """How a plan ended: "" or an error. Whichever, all parties go on once the network does."""
    error = bad.play(seed)
    if error is not None:
        assert isinstance(error, LineError | CancelledJobError), error
        assert bad.play(None) is None
    return str(error or "")


@pytest.mark.parametrize("seed", range(10))
def test_a_bad_network(bad: Bad, seed: int) -> None:
    survives(bad, seed)


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, 200, 50))
def test_two_hundred_bad_networks(bad: Bad, first: int) -> None:
    plans, ended = many(50), 0
    for seed in range(first, first + plans):
        about = {"test": "plan", "program": bad.method, "seed": seed}
        if left(**about):
            with noted(**about) as found:
                begin = time.monotonic()
                said = survives(bad, seed)
                found |= {"outcome": "error" if said else SAME, "said": said}
                found["seconds"] = time.monotonic() - begin
                ended += bool(said)
    # Most of them are repaired; what is not, is a line that was lost.
    assert ended <= 0.45 * plans or plans < 50


@pytest.mark.parametrize("seed", [0, 1])
def test_what_comes_twice_and_out_of_order_changes_nothing(
    bad: Bad, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    async def wild(post: Transport, role: Role, **more: Any) -> Run:
        below = faults.Faults(post, faults.Plan(seed, delay=0.01, duplicate=0.2))
        run = await serve_role(below, role, **more)
        await asyncio.gather(*below._late)  # nothing is lost
        return run

    for module in (attempt, caller):
        monkeypatch.setattr(module, "serve_role", wild)
    assert bad.play(None) is None
