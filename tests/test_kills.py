"""Killed at any moment, as by `kill -9`, and started again: the undisturbed result, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

import numpy as np
import pytest
import torch

from protocols.wire.reconcile import verify
from tests.protocols.networked import CASES, POLICY, Case, Outcome
from tests.protocols.served import lay_out

DEADLINE = 120.0  # seconds for a job with a kill in it; undisturbed it takes one or two


@dataclass
class Living:
    """One party as a process, which is started again whenever it was killed."""

    command: Sequence[str]
    log: Path
    process: subprocess.Popen[str] = field(init=False)
    deaths: int = 0
    said: SimpleQueue[str] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.protocols.mortal", *self.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True).start()

    def _listen(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.said.put(line.strip())

    def ask(self, words: object) -> None:
        with suppress(BrokenPipeError):  # killed again
            print(words, file=self.process.stdin, flush=True)

    def revive(self) -> bool:
        """Start it again if it was killed; whether it was. Anything else that ends it is an error."""
        if self.process.poll() is None:
            return False
        assert self.process.returncode == -signal.SIGKILL, self.log.read_text()[-3000:]
        self.left_nobody()
        self.deaths += 1
        self.start()
        return True

    def left_nobody(self) -> None:
        """No process that it started outlives it."""
        self.process.wait(10)
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)

    def stop(self) -> None:
        """As an operator does."""
        self.process.terminate()
        self.left_nobody()


@dataclass
class Crew:
    """All parties of one method, each a process."""

    folder: Path
    method: str
    case: Case
    parties: dict[str, Living]
    expected: Outcome
    jobs: int = 0

    def play(self, deaths: dict[str, int], kill: tuple[str, float] | None = None) -> None:
        """One job that `deaths` (party -> moment) befall, and a `kill` (party, seconds) from outside."""
        for party, moment in deaths.items():
            (self.folder / f"{party}.die").write_text(str(moment))
        self.jobs += 1
        result = self.folder / f"{self.jobs}.npz"
        caller = self.parties[self.case.caller]
        begin = time.monotonic()
        caller.ask(result)
        until = begin + DEADLINE
        said = ""
        while said != "done":
            assert time.monotonic() < until, f"no result; {caller.log.read_text()[-3000:]}"
            if kill is not None and time.monotonic() > begin + kill[1]:
                self.parties[kill[0]].process.kill()
                self.parties[kill[0]].process.wait(10)
                kill = None
            for living in self.parties.values():
                if living.revive() and living is caller:
                    caller.ask(result)
            with suppress(Empty):
                said = caller.said.get(timeout=0.05)
            assert said in ("", "ready", "done"), said
        self._check(result)

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
        if self.jobs == 1:
            self.digests = digests
        assert digests == self.digests

    def check_ledgers(self) -> None:
        """All pairs agree on what was said, whoever was killed."""
        names = list(self.parties)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                files = [self.folder / f"{party}-store" / "ledger.jsonl" for party in (a, b)]
                verdict = verify(*files)
                assert verdict.agree, verdict.asdict()


@pytest.fixture(scope="module", params=CASES)
def crew(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    torch.set_num_threads(1)
    method, case = request.param, CASES[request.param]
    folder = tmp_path_factory.mktemp("kills")
    lay_out(folder, case.tables(), POLICY)
    commands = {party: ["serve", f"{folder}/{party}.toml"] for party in case.served}
    commands[case.caller] = ["call", str(folder), method]
    parties = {p: Living(command, folder / f"{p}.log") for p, command in commands.items()}
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
def test_each_party_is_killed_at_fifty_moments(crew: Crew) -> None:
    rng = random.Random(2)
    for party in crew.parties:
        count = moments(crew, party)
        for kill in range(50):
            deaths = {party: rng.randrange(count)}
            if kill % 5 == 4:  # two of them
                other = rng.choice([peer for peer in crew.parties if peer != party])
                deaths[other] = rng.randrange(count)
            print(party, deaths, flush=True)
            if kill % 2:
                crew.play(deaths)
            else:
                crew.play({}, kill=(party, rng.uniform(0.0, 2.0)))
