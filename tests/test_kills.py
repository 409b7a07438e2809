"""Killed at any moment, as by `kill -9`, and started again: the undisturbed result, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protocols.record.reconcile import verify
from tests.support.figures import SAME, left, many, noted
from tests.support.forked import CONTEXT, Forked
from tests.support.mortal import call, serve
from tests.support.networked import ALL, POLICY, WHICH, Case, Outcome
from tests.support.served import lay_out
from tests.support.waiting import HANG


@dataclass
class Living:
    """One party as a process, which is started again whenever it was killed."""

    target: Callable[..., None]
    told: tuple[object, ...]
    log: Path
    process: Forked = field(init=False)
    line: Connection = field(init=False)
    deaths: int = 0

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.line, theirs = CONTEXT.Pipe()
        self.process = Forked(self.log, self.target, *self.told, theirs)
        theirs.close()

    def ask(self, words: object) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # killed again
            self.line.send_bytes(str(words).encode())

    def said(self) -> str:
        """What it said last; nothing if it has not."""
        with suppress(EOFError, ConnectionResetError):
            if self.line.poll():
                return self.line.recv_bytes().decode()
        return ""

    def revive(self) -> bool:
        """Start it again if it was killed; whether it was. Anything else that ends it is an error."""
        code = self.process.poll()
        if code is None:
            return False
        assert code == -signal.SIGKILL, self.log.read_text()[-3000:]
        self.left_nobody()
        self.deaths += 1
        self.start()
        return True

    def left_nobody(self) -> None:
        """No process that it started outlives it."""
        self.process.wait()
        self.line.close()
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)

    def stop(self) -> None:
        """As an operator does."""
        self.process.terminate()
        self.left_nobody()


@dataclass
class Job:
    """When it was begun, parties of it were found dead, and it was done, by this process's clock."""

    begun: float
    deaths: list[float] = field(default_factory=list)
    ended: float = 0.0


@dataclass
class Crew:
    """All parties of one method, each a process."""

    folder: Path
    method: str
    case: Case
    parties: dict[str, Living]
    expected: Outcome
    jobs: int = 0
    kept: dict[str, Any] = field(default_factory=dict)  # by the first job, of each party

    def play(self, deaths: dict[str, int], kill: tuple[str, float] | None = None) -> Job:
        """One job that `deaths` (party -> moment) befall, and a `kill` (party, seconds) from outside."""
        for party, moment in deaths.items():
            (self.folder / f"{party}.die").write_text(str(moment))
        self.jobs += 1
        result = self.folder / f"{self.jobs}.npz"
        caller, job = self.parties[self.case.caller], Job(time.monotonic())
        caller.ask(result)
        said = ""
        while said != "done":
            if kill is not None and time.monotonic() >= job.begun + kill[1]:
                self.parties[kill[0]].process.kill()
                kill = None
            for living in self.parties.values():
                if living.revive():
                    job.deaths.append(time.monotonic())
                    if living is caller:
                        caller.ask(result)
            due = HANG if kill is None else max(0.0, job.begun + kill[1] - time.monotonic())
            happened = wait(
                [caller.line, *(living.process.sentinel for living in self.parties.values())], due
            )
            assert happened or kill is not None, f"no result; {caller.log.read_text()[-3000:]}"
            said = caller.said()
            assert said in ("", "done"), said
        job.ended = time.monotonic()
        self._check(result)
        return job

    def _check(self, result: Path) -> None:
        with np.load(result, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files if name != "run"}
            run = str(found["run"])
        self.expected.check(Outcome(run, arrays))
        stores = {party: self.folder / f"{party}-store" for party in self.case.tables()}
        parts = {p: json.loads((store / f"parts/{run}/part.json").read_text()) for p, store in stores.items()}
        digests = {party: part["digest"] for party, part in parts.items()}
        for party, part in parts.items():
            assert part["others"] == {peer: said for peer, said in digests.items() if peer != party}
        for part in parts.values():
            for varies in ("created", "others", "digest"):
                del part[varies]
            part["settings"].pop("salt", None)  # of an alignment's digest
        if self.jobs == 1:
            self.kept = parts
        assert parts == self.kept

    def check_ledgers(self) -> None:
        """All pairs agree on what was said, whoever was killed."""
        names = list(self.parties)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                files = [self.folder / f"{party}-store" / "ledger.jsonl" for party in (a, b)]
                verdict = verify(*files)
                assert verdict.agree, verdict.asdict()


@pytest.fixture(scope="module", params=WHICH)
def crew(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    torch.set_num_threads(1)
    method, case = request.param, ALL[request.param]
    folder = tmp_path_factory.mktemp("kills")
    lay_out(folder, case.tables(), POLICY)
    logs = {party: folder / f"{party}.log" for party in case.tables()}
    parties = {party: Living(serve, (folder / f"{party}.toml",), logs[party]) for party in case.served}
    parties[case.caller] = Living(call, (folder, method), logs[case.caller])
    try:
        crew = Crew(folder, method, case, parties, case.here())
        crew.play({})
        yield crew
        crew.check_ledgers()
    finally:
        for living in parties.values():
            living.stop()


def moments(crew: Crew, party: str) -> int:
    """How many there are in an undisturbed job."""
    file = crew.folder / f"{party}.moments"
    file.write_bytes(b"")
    crew.play({})
    return file.stat().st_size


def test_a_party_is_killed(crew: Crew) -> None:
    rng = random.Random(1)
    for party in crew.parties:
        before = crew.parties[party].deaths
        crew.play({party: rng.randrange(5, 20)})  # all methods have more moments
        assert crew.parties[party].deaths == before + 1


@pytest.mark.long
@pytest.mark.parametrize("number", range(3))
def test_each_party_is_killed_at_fifty_moments(crew: Crew, number: int) -> None:
    party = list(crew.parties)[number]
    count, undisturbed = moments(crew, party), crew.play({})
    for kill in range(many(50)):
        about = {"test": "kill", "program": crew.method, "party": party, "kill": kill}
        if not left(**about):
            continue
        with noted(**about) as found:
            job = _killed(crew, party, kill, count, undisturbed.ended - undisturbed.begun)
            found |= {"outcome": SAME, "deaths": len(job.deaths)}
            found |= {"seconds": job.ended - job.begun, "recovery": job.ended - job.deaths[0]}


def _killed(crew: Crew, party: str, kill: int, count: int, undisturbed: float) -> Job:
    """A job in which `party` was killed at one of `count` moments, or at a time, and maybe another too."""
    rng = random.Random(f"{party} {kill}")
    job = Job(0.0)
    while not job.deaths:  # a job may be done before the kill that was drawn
        if kill % 2 == 0:
            job = crew.play({}, kill=(party, rng.random() * undisturbed))
            continue
        deaths = {party: rng.randrange(count)}
        if kill % 10 in (1, 5):  # two of them
            other = rng.choice([peer for peer in crew.parties if peer != party])
            deaths[other] = rng.randrange(count)
        job = crew.play(deaths)
    return job
