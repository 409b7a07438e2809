"""A party's disk is full or read-only: the job fails in words at the caller, and the party goes on."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from protocols.errors import DataError, VflError
from protocols.federation import Federation
from protocols.parts import list_parts, load_part
from protocols.record.reconcile import verify
from protocols.service.agent import serve_party
from protocols.service.caller import Connected
from protocols.service.config import read_config
from tests.support.networked import CASES, POLICY, SEED, Outcome
from tests.support.seeds import known_seeds
from tests.support.served import lay_out, serving
from tests.support.waiting import HANG

CASE = CASES["vertical-net"]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Disk:
    """What is below `folder` refuses to be written with `error`, from the write number `from_` on."""

    folder: Path
    error: int = errno.ENOSPC
    from_: int | None = None
    writes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, path: object) -> None:
        """Called before each write."""
        if str(self.folder) not in str(path) or "status.json" in str(path):
            return
        with self.lock:
            self.writes += 1
            if self.from_ is not None and self.writes > self.from_:
                raise OSError(self.error, os.strerror(self.error), str(path))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Between this process and its disk."""
        open_, write, replace, fsync = os.open, os.write, os.replace, os.fsync
        path_open = Path.open

        def opening(path: Any, flags: int, *args: Any, **more: Any) -> int:
            if flags & WRITES:
                self.write(path)
            return open_(path, flags, *args, **more)

        def path_opening(path: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
            if mode != "r" and mode != "rb":
                self.write(path)
            return path_open(path, mode, *args, **more)

        def writing(handle: int, data: Any) -> int:
            self.write(os.readlink(f"/proc/self/fd/{handle}"))
            return write(handle, data)

        def flushing(handle: int) -> None:
            self.write(os.readlink(f"/proc/self/fd/{handle}"))
            fsync(handle)

        def replacing(source: Any, target: Any) -> None:
            self.write(target)
            replace(source, target)

        patch.setattr(os, "open", opening)
        patch.setattr(os, "write", writing)
        patch.setattr(os, "fsync", flushing)
        patch.setattr(os, "replace", replacing)
        patch.setattr(Path, "open", path_opening)


@dataclass
class Crew:
    folder: Path
    all: Connected
    expected: Outcome

    @property
    def telco(self) -> Path:
        return self.folder / "telco-store"

    def play(self) -> Outcome:
        outcome = CASE.play(self.all)
        self.expected.check(outcome)
        return outcome

    def check_sound(self, run: str) -> None:
        """What was kept before is as it was, and telco's ledger says what bank's says."""
        load_part(self.telco / "parts", run)
        time.sleep(0.2)
        verdict = verify(self.telco / "ledger.jsonl", self.folder / "bank-store" / "ledger.jsonl")
        assert verdict.agree, verdict.asdict()


@contextmanager
def crew_in(folder: Path) -> Iterator[Crew]:
    torch.set_num_threads(1)
    with (
        known_seeds(SEED),
        serving(folder, *CASE.served),
        Federation.connect(folder / "parties.toml", "bank", CASE.tables()["bank"], patience=HANG) as all_,
    ):
        yield Crew(folder, all_, CASE.here())


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    folder = tmp_path_factory.mktemp("disks")
    lay_out(folder, CASE.tables(), POLICY)
    with crew_in(folder) as crew:
        yield crew


def fail_from(crew: Crew, disk: Disk, write: int) -> str:
    """A job during which the disk gives out at a write; what is told, if it matters."""
    disk.from_, disk.writes = write, 0
    said = ""
    try:
        crew.play()
    except VflError as error:
        said = str(error)
    finally:
        disk.from_ = None
    if said:
        assert said.startswith(f"{disk.folder.name.removesuffix('-store')}/"), said
        assert os.strerror(disk.error) in said or "the job is not open" in said, said
    return said


@pytest.mark.parametrize(("party", "error"), [("telco", errno.ENOSPC), ("bank", errno.EROFS)])
def test_a_disk_gives_out_at_some_write(
    crew: Crew, monkeypatch: pytest.MonkeyPatch, party: str, error: int
) -> None:
    before = crew.play().run
    disk = Disk(crew.folder / f"{party}-store", error)
    disk.install(monkeypatch)
    crew.play()
    count = disk.writes
    for write in [0, *range(1, count, count // 4)]:
        said = fail_from(crew, disk, write)
        assert said or write > count // 2
        crew.play()
    crew.check_sound(before)


@pytest.mark.long
@pytest.mark.parametrize("party", ["telco", "bank"])
def test_a_disk_gives_out_at_each_write(crew: Crew, monkeypatch: pytest.MonkeyPatch, party: str) -> None:
    before = crew.play().run
    disk = Disk(crew.folder / f"{party}-store")
    disk.install(monkeypatch)
    crew.play()
    for write in range(disk.writes):
        fail_from(crew, disk, write)
        crew.play()
    crew.check_sound(before)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder of 400 KB."""
    place = tmp_path / "telco-store"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_small_disk(small: Path, tmp_path: Path) -> None:
    lay_out(tmp_path, CASE.tables(), POLICY)
    filler = small / "filler"
    with crew_in(tmp_path) as crew:
        before = crew.play()
        for room in (0, 10_000, 30_000):
            fill(filler, room)
            with pytest.raises(DataError, match=r"^telco/.*No space left on device"):
                crew.play()
            assert list_parts(small / "parts")[0] and load_part(small / "parts", before.run)
            filler.unlink()
            for run in list_parts(small / "parts"):
                if run != before.run:
                    subprocess.run(["rm", "-r", str(small / "parts" / run)], check=True)
            crew.play()
        crew.check_sound(before.run)


def fill(file: Path, room: int) -> None:
    """Let `file` take all space but `room` bytes."""
    free = os.statvfs(file.parent)
    with file.open("wb") as filler:
        filler.write(bytes(max(0, free.f_bavail * free.f_frsize - room)))


def test_a_disk_that_is_read_only_from_the_start(small: Path, tmp_path: Path) -> None:
    lay_out(tmp_path, CASE.tables())
    small.chmod(0o700)  # or it would be refused for its mode
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with pytest.raises(DataError, match=r"telco/ledger: the ledger .* cannot be written: Read-only"):
        asyncio.run(serve_party(*read_config(tmp_path / "telco.toml")))
