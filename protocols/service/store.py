"""What one party keeps about jobs in its folder: records, what a person said, checkpoints and parts.

Takes part: one party, alone; nothing here leaves it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

import safetensors.numpy
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from protocols import private
from protocols.arrays import Arrays
from protocols.errors import ConfigError, DataError, ProtocolError
from protocols.files import leftovers, remove, sealed, unsealed, write_whole
from protocols.logs import log
from protocols.randomness import new_seed
from protocols.service.jobs import ALIGNED, CUT, HOLDS, OPEN, Attempt, Given, JobId, Propose, State

REQUEST = {"caller", "program", "action", "parameters", "parties", "table", "run"}


class Record(BaseModel):
    """One party's record of a job on disk. It holds parameters and names, and no data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: JobId
    attempt: Attempt
    caller: str
    program: str
    action: str
    parameters: dict[str, JsonValue]
    parties: tuple[str, ...]
    table: str
    run: str
    state: State
    reason: str = ""
    granted: Literal["", "policy", "person"] = ""  # by whom
    given: Given | None = None  # by a person
    ran: int = 0  # the last attempt that ran
    table_digest: str = Field(default="", repr=False)
    created: AwareDatetime
    updated: AwareDatetime

    @property
    def request(self) -> str:
        """A hash (64 hex digits) over all that was asked for, equal when the same job is asked for again."""
        said = self.model_dump(mode="json", include=REQUEST)
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    @classmethod
    def of(cls, proposal: Propose, caller: str, state: State = "proposed") -> Record:
        """Make a new record of what `caller` proposes."""
        now = datetime.now(UTC)
        said = {name: getattr(proposal, name) for name in REQUEST if name != "caller"}
        return cls(
            job=proposal.job,
            attempt=proposal.attempt,
            caller=caller,
            state=state,
            created=now,
            updated=now,
            **said,
        )


class Store:
    """One party's folder: jobs, approvals, cancellations, checkpoints and parts; all for its owner only.

    What a person says (`vfl approve`, `vfl cancel`) is a file here too, which the running party looks for: so
    it works while the party is down, and whoever may write here may say it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def secure(self) -> None:
        """Deny everybody else access to the store. Raises ConfigError where that fails."""
        private.secure(self.folder, HOLDS)

    @property
    def parts(self) -> Path:
        """Where parts are kept, by the job that trained them."""
        return self.folder / "parts"

    @property
    def scratch(self) -> Path:
        """Where a run puts what it does not hold in memory, until it ends."""
        return self.folder / "scratch"

    def clear_scratch(self) -> None:
        """Delete what killed processes left behind: for whoever holds this store, while it runs nothing."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        with suppress(OSError):
            remove(file for name in (".", *HOLDS) for file in leftovers(self.folder / name) if file.is_file())

    @property
    def ledger(self) -> Path:
        """The ledger file."""
        return self.folder / "ledger.jsonl"

    def save(self, record: Record) -> Record:
        """Write `record`, whole or not at all; returns it with the time of now."""
        record = record.model_copy(update={"updated": datetime.now(UTC)})
        path = self.folder / "jobs" / f"{record.job}.json"
        write_whole(path, record.model_dump_json(indent=1).encode())
        return record

    def forget(self, job: str) -> None:
        """Delete what is kept about `job`."""
        self.checkpoints(job).drop()
        with suppress(OSError):
            for path in (f"jobs/{job}.json", f"approve/{job}", f"cancel/{job}"):
                (self.folder / path).unlink(missing_ok=True)

    def find(self, job: str) -> Record | None:
        """The record of `job`, if there is one. DataError if it is damaged."""
        path = self.folder / "jobs" / f"{job}.json"
        try:
            return Record.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise DataError(f"the record {path} cannot be read: {type(error).__name__}") from None

    def all(self) -> list[Record]:
        """All records, the oldest first; without those that are damaged, which are logged."""
        return self._found(path.stem for path in (self.folder / "jobs").glob("*.json"))

    def resumable(self) -> list[Record]:
        """The records of the jobs that have checkpoints, the oldest first."""
        return self._found(path.name for path in (self.folder / "checkpoints").glob("*"))

    def _found(self, jobs: Iterable[str]) -> list[Record]:
        found = []
        for job in jobs:
            try:
                record = self.find(job)
            except DataError as error:
                log.warning("request failed", extra={"job": job}, exc_info=error)
                continue
            if record is not None:
                found.append(record)
        return sorted(found, key=lambda record: (record.created, record.job))

    def expire(self, limit: datetime) -> int:
        """Delete the records of ended jobs that were last updated before `limit`; return how many."""
        old = [record for record in self.all() if record.state not in OPEN and record.updated < limit]
        for record in old:
            self.forget(record.job)
        return len(old)

    def drop_checkpoints(self, limit: datetime) -> None:
        """Delete the checkpoints of ended jobs that were last updated before `limit`, and all but the `CUT`
        latest of each caller's; their records stay.

        Whoever goes on with such a job nevertheless begins it anew, from other seeds.
        """
        ended = [record for record in self.resumable() if record.state not in OPEN]
        kept: Counter[str] = Counter()
        for record in sorted(ended, key=lambda record: record.updated, reverse=True):
            kept[record.caller] += 1
            if record.updated < limit or kept[record.caller] > CUT:
                self.checkpoints(record.job).drop()

    def say(self, what: Literal["approve", "cancel"], job: str, seen: Record | None = None) -> None:
        """Leave word about `job` for the running party. seen: what the person was shown of it.

        ConfigError for a job that is not open here, or asks for something else than was shown: a caller may
        give its number to another job when few remember it.
        """
        record = self.find(job)
        if record is None:
            raise ConfigError(f"no job {job!r} in {self.folder}; `vfl jobs` lists them")
        if what == "approve" and record.state != "proposed":
            raise ConfigError(f"job {job} is {record.state}; only a proposed job can be approved")
        if what == "approve" and record.granted:  # the word would lie there until somebody asks again
            raise ConfigError(f"job {job} was granted already, by {record.granted}; it waits for its turn")
        if record.state not in OPEN:
            raise ConfigError(f"job {job} is {record.state} already")
        if seen is not None and seen.request != record.request:
            raise ConfigError(f"job {job} asks for something else by now; look at it again")
        write_whole(self.folder / what / job, record.request.encode())

    def said(self, what: Literal["approve", "cancel"], job: str, request: str = "") -> bool:
        """Return whether that word was left, and about this `request` if one is given. The word is deleted if
        the disk allows it."""
        path = self.folder / what / job
        if not os.path.exists(path):  # asked first: on a read-only disk, unlink fails for what is not there
            return False
        about = path.read_text(errors="replace") if request else ""
        with suppress(OSError):
            remove([path])
        return about == request

    def checkpoints(self, job: str) -> Kept:
        """The checkpoints of `job`."""
        return Kept(self.folder / "checkpoints" / job)


class Kept:
    """A job's checkpoints on disk: its seed, the common rows, and the last two steps.

    Two, since parties may be one step apart. Steps are sealed and not flushed, since each would wait for the
    disk: one that a loss of power tore counts as none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._done, self._aligned = folder, 0, False
        self._seed = folder / "seed"

    @property
    def steps(self) -> list[int]:
        """Steps after which a state is kept, ascending."""
        return [step for step in self._written() if self._read(step) is not None]

    @property
    def aligned(self) -> bool:
        """Return whether the common rows are kept."""
        return self._seed.exists() and self._read(ALIGNED) is not None

    @property
    def some(self) -> bool:
        """Return whether there is a checkpoint to resume from."""
        return self.reached != (False, 0)

    @property
    def reached(self) -> tuple[bool, int]:
        """How far the job has come here."""
        return self.aligned, max(self.steps, default=0)

    def agree(self, done: int, aligned: bool = False) -> None:
        """Go on after `done` steps, with the common rows that are kept if `aligned`; after neither, anew, and
        with another seed.

        ProtocolError if that is not kept, or if steps after an alignment are to be gone on with after another
        one; DataError for what the disk refuses.
        """
        if done and done not in self.steps:
            raise ProtocolError(f"asked to go on after step {done}, kept are {self.steps or 'none'}")
        if aligned != self.aligned and (aligned or done):
            raise ProtocolError(
                f"asked to go on after step {done} {'after' if aligned else 'without'} an alignment, kept is "
                f"{'one' if self.aligned else 'none'}"
            )
        # What comes after is made again, with other secrets: the old would fit nobody else's.
        self._delete(self._place(step) for step in self._written() if step > done)
        if not aligned:
            self._delete([self._place(ALIGNED)])
        if not (done or aligned):  # of the same secret draws, one sample of rows could be asked about twice
            self._delete([self._seed])
        self._done, self._aligned = done, aligned

    @cached_property
    def seed(self) -> int:
        """This party's own in this job, which nobody is told. It is on disk before the first state that came
        of it, so that whoever goes on has the same. DataError if it cannot be read.
        """
        try:
            return int(self._seed.read_text(), 16)
        except FileNotFoundError:
            return new_seed()
        except (OSError, ValueError) as error:
            raise DataError(f"the seed {self._seed} cannot be read: {type(error).__name__}") from None

    def latest(self) -> tuple[int, Arrays | None]:
        """Return the steps that were done, as agreed, and the state after them."""
        return (self._done, self._load(self._done)) if self._done else (0, None)

    def alignment(self) -> Arrays | None:
        """Return the common rows that are kept, if all agreed to reuse them."""
        return self._load(ALIGNED) if self._aligned else None

    def save(self, done: int, state: Arrays) -> None:
        """Keep `state` after `done` steps. DataError for what the disk refuses."""
        self._save(done, state)
        self._delete((self._place(step) for step in self._written() if step < done - 1), durable=False)

    def save_alignment(self, state: Arrays) -> None:
        """Keep the common rows. DataError for what the disk refuses."""
        self._save(ALIGNED, state, durable=True)

    def _place(self, step: int | str) -> Path:
        return self._folder / f"{step}.safetensors"

    def _written(self) -> list[int]:
        """Steps of which there is a file, whole or not, ascending."""
        if not self._seed.exists():  # what is left of a job that was being forgotten
            return []
        return sorted(int(path.stem) for path in self._folder.glob("*.safetensors") if path.stem.isdecimal())

    def _read(self, step: int | str) -> bytes | None:
        """The content of a checkpoint; None for one that is torn or missing."""
        try:
            return unsealed(self._place(step).read_bytes())
        except OSError:
            return None

    def _load(self, step: int | str) -> Arrays:
        content = self._read(step)
        try:
            if content is not None:
                return Arrays(safetensors.numpy.load(content))
        except safetensors.SafetensorError:
            pass
        raise DataError(f"the checkpoint {self._place(step)} cannot be read; was it changed meanwhile?")

    def _save(self, step: int | str, state: Arrays, *, durable: bool = False) -> None:
        if not self._seed.exists():
            self.drop()
            write_whole(self._seed, f"{self.seed:064x}".encode())
        write_whole(self._place(step), sealed(safetensors.numpy.save(dict(state))), durable=durable)

    def _delete(self, paths: Iterable[Path], *, durable: bool = True) -> None:
        try:
            remove(paths, durable=durable)
        except OSError as error:
            raise DataError(f"{self._folder} cannot be written: {error.strerror or error}") from None

    def drop(self) -> None:
        """Delete all checkpoints of the job."""
        shutil.rmtree(self._folder, ignore_errors=True)


def common_step(answers: Sequence[Sequence[int]]) -> int:
    """Return the last step that all have a checkpoint of; 0 if there is none."""
    return max(set.intersection(*map(set, answers)), default=0) if answers else 0
