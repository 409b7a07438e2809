"""Jobs: what one party proposes, all agree to, and each keeps a record of.

Takes part: the caller, who proposes, and every other party of the job. They talk in the job "", scope "jobs",
apart from the roles' own messages:

    caller                         every other party
    Propose  ------------------->                       its policy, or a person, decides
             <-------------------  Answer "ready"       (or "waiting" for a person, or "refused")
    Claim    ------------------->                       in the order of names: no two callers block each other
             <-------------------  Answer "claimed"     its turn has come (or "queued" behind other jobs)
    Prepare  ------------------->                       all are claimed: each reads its table
             <-------------------  Answer "agreed"      prepared; what it could go on after
    Start    ------------------->                       the roles run; Renew every few seconds
             <-------------------  Ended                with the digest of its part, or what failed
    Sealed   ------------------->                       the digests of all parts; each is kept
             <-------------------  Ended                kept
    Over     ------------------->                       all have kept theirs: checkpoints are deleted

While another caller waits, a party keeps its turn for seconds only for a job that has not started. Then it
says "queued", and by itself "claimed" or "agreed" again once the turn is back. So no caller that waits for
one party holds up another's job at a second.

A caller that falls silent is noticed by its lease, and the job is cancelled everywhere. An attempt that was
cut off is proposed again under the same job with the next attempt's number, and goes on after the last step
that all parties have a checkpoint of; so each keeps its checkpoints until it hears Over, since another may
have been killed before it kept its part. The first of these checkpoints holds which rows are common: an
attempt that goes on after it compares no ids again, and so is of the same rows, whatever the caller's table
holds by now. An attempt's number never comes twice, so a replay is refused. A word about an attempt that is
not open at a party is answered with how it ended there, so nobody waits for what was lost with a process or a
line.

Who learns what: each party that is asked sees method, parameters, the parties, and the name of its own table
that is wanted; the caller sees who agrees, why not, and from which steps a party could go on. Semi-honest
parties; a caller can ask again and again, which the policy of each party bounds.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal, get_args

import safetensors
import safetensors.numpy
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from protocols import private
from protocols.arrays import Arrays
from protocols.errors import ConfigError, DataError, ProtocolError
from protocols.logs import log
from protocols.policy.rules import Action
from protocols.randomness import new_seed
from protocols.wire.codec import decode, encode
from protocols.wire.message import Message
from protocols.wire.transport import Envelope, Transport

SCOPE = "jobs"
LEASE = 30.0  # seconds without a word from the caller, until its job is cancelled
RENEW = 5.0  # seconds between two words
CUT = 5  # jobs of one caller that were cut off and can be gone on with
ALIGNED = "aligned"  # the checkpoint that holds which rows are common
State = Literal["proposed", "agreed", "running", "done", "failed", "cancelled"]
OPEN: tuple[State, ...] = ("proposed", "agreed", "running")

JobId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Attempt = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
Name = Annotated[str, Field(max_length=63)]
Reason = Annotated[str, Field(max_length=2000)]
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


class Propose(
    Message,
    reveals="which registered method the sender wants to run, with which parameters, among whom, and on "
    "which table of the receiver's; the earlier run that is used, its software's version",
):
    """From the caller: shall we?"""

    job: JobId
    attempt: Attempt
    program: Name
    action: Action
    parameters: dict[str, JsonValue]
    parties: Annotated[list[Name], Field(min_length=2, max_length=1000)]  # in roster order
    table: Name  # "": the only one
    run: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")]  # for predicting: the job that trained
    schemas: Digest
    version: Annotated[str, Field(max_length=64)]  # of the sender's vfl-toolkit


Standing = Literal["ready", "waiting", "queued", "claimed", "agreed", "refused"]


class Answer(
    Message,
    reveals="whether a party takes part in a job, and why it does not; whether it is at work for others; "
    "after which steps it could go on, and whether it knows which rows are common",
):
    """To the caller."""

    job: JobId
    attempt: Attempt
    state: Standing
    error: Name = ""  # the kind of the refusal
    scope: Annotated[str, Field(max_length=512)] = ""
    reason: Reason = ""
    steps: Annotated[tuple[int, ...], Field(max_length=64)] = ()
    aligned: bool = False  # whether it has the common rows from an earlier attempt


class Claim(Message, reveals="that the sender's turn to claim a party for its job has come"):
    """From the caller: keep your next turn for this job."""

    job: JobId
    attempt: Attempt


class Prepare(Message, reveals="that all parties of a job have been claimed for it"):
    """From the caller: get ready to run it."""

    job: JobId
    attempt: Attempt


class Start(
    Message,
    reveals="that all parties agreed to a job, after how many steps it goes on, and whether they compare ids",
):
    """From the caller: run."""

    job: JobId
    attempt: Attempt
    done: Annotated[int, Field(ge=0, strict=True)]
    aligned: bool = False  # whether all go on with the common rows of an earlier attempt

    @property
    def anew(self) -> bool:
        """Whether the job begins from the beginning."""
        return not (self.done or self.aligned)


class Renew(Message, reveals="that the caller of a job is still there"):
    """Renews the caller's lease."""

    job: JobId
    attempt: Attempt


class Ended(
    Message,
    reveals="how one party's role ended: the digest of the part that it keeps, or where and how it failed",
):
    """To the caller."""

    job: JobId
    attempt: Attempt
    digest: Digest = ""
    party: Name = ""
    scope: Annotated[str, Field(max_length=512)] = ""
    error: Name = ""
    reason: Reason = ""


class Sealed(Message, reveals="the digests of all parties' parts of one run"):
    """From the caller: done."""

    job: JobId
    attempt: Attempt
    digests: dict[str, Digest]


class Cancel(
    Message,
    reveals="that the caller gives up an attempt at a job, and with which error, as any party is told of one",
):
    """From the caller, who may propose the job again."""

    job: JobId
    attempt: Attempt
    why: Reason = ""


class Over(Message, reveals="that the caller of a job will not come back to it"):
    """From the caller: what you would go on from is not needed any more."""

    job: JobId
    attempt: Attempt


Word = Propose | Answer | Claim | Prepare | Start | Renew | Ended | Sealed | Cancel | Over
KINDS: dict[str, type[Word]] = {kind.kind: kind for kind in get_args(Word)}
# Bytes of a word, at most: of a proposal with 1000 parties and its parameters, of the digests of as many
# parts, and of any other. A megabyte of empty lists takes seconds to read, and all others would wait.
LONGEST: dict[str, int] = {Propose.kind: 96 << 10, Sealed.kind: 160 << 10}
LONGEST_OTHER = 32 << 10


class NoWordError(ProtocolError):
    """What a peer said about jobs is no word."""


class Control:
    """The conversation about jobs, over one party's transport for the job ""."""

    def __init__(self, transport: Transport, me: str) -> None:
        self._transport, self._me = transport, me
        self._sent: dict[str, int] = {}

    async def say(self, to: str, message: Word) -> None:
        """Send `message`; LineError where `to` is not there, ConfigError for one that nobody would read."""
        body, most = encode(message), LONGEST.get(message.kind, LONGEST_OTHER)
        if len(body) > most:
            raise ConfigError(f"{message.kind} to {to} would have {len(body)} bytes, at most {most}")
        number = self._sent[to] = self._sent.get(to, -1) + 1
        digest = hashlib.sha256(body).digest()
        await self._transport.deliver(
            Envelope("", self._me, to, SCOPE, number, message.kind, 1, digest, body)
        )

    async def hear(self, sender: str) -> Word:
        """The next word from `sender`; NoWordError for one that is none, which is taken too.

        Others come to run each time, also where `sender` has said much, or cannot be heard at all.
        """
        await asyncio.sleep(0)
        e = await self._transport.collect(self._me, sender, SCOPE)
        if e.kind not in KINDS:
            raise NoWordError(f"{e.kind} from {sender} in {SCOPE!r} is no word about jobs")
        most = LONGEST.get(e.kind, LONGEST_OTHER)
        if len(e.body) > most:
            raise NoWordError(f"{e.kind} from {sender} in {SCOPE!r} has {len(e.body)} bytes, at most {most}")
        try:
            return decode(KINDS[e.kind], e.body, sender=sender, scope=SCOPE)
        except ProtocolError as error:
            raise NoWordError(*error.args) from error


class Given(BaseModel):
    """A person's consent to a job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attempt: Attempt  # for which it was given
    when: AwareDatetime
    attempts: int = 0  # that have run under it; after the first it holds for going on alone


class Record(BaseModel):
    """What one party keeps on disk about a job. Holds no data, but parameters and names."""

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
        """A hash over all that was asked for: equal for the same job asked for again; 64 hex digits."""
        said = self.model_dump(mode="json", include=REQUEST)
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    @classmethod
    def of(cls, proposal: Propose, caller: str, state: State = "proposed") -> Record:
        """A new record of what `caller` proposes."""
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


# What is kept in a store, whoever keeps it there.
HOLDS: tuple[str, ...] = ("jobs", "approve", "cancel", "checkpoints", "parts", "scratch", "_history")
HOLDS += ("unbalanced", "unbalanced-lock", "ledger.jsonl", "status.json")
REQUEST = {"caller", "program", "action", "parameters", "parties", "table", "run"}


class Store:
    """One party's folder: jobs, approvals, cancellations, checkpoints and parts; all for its owner only.

    What a person says (`vfl approve`, `vfl cancel`) is a file here too, which the running party looks for: so
    it works while the party is down, and whoever may write here may say it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def secure(self) -> None:
        """Close what is there to all others. ConfigError for what cannot be closed."""
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
        """Delete what is there: for whoever holds this store, while it runs nothing."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def ledger(self) -> Path:
        """The ledger file."""
        return self.folder / "ledger.jsonl"

    def save(self, record: Record, *, durable: bool = True) -> Record:
        """Write `record`, whole or not at all; returns it with the time of now."""
        record = record.model_copy(update={"updated": datetime.now(UTC)})
        path = self.folder / "jobs" / f"{record.job}.json"
        write_whole(path, record.model_dump_json(indent=1).encode(), durable=durable)
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
        """Delete the records of ended jobs that were last updated before `limit`; how many."""
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
        """Whether that word was left, and about this `request` if one is given; it is taken away, where the
        disk lets us."""
        path = self.folder / what / job
        if not os.path.exists(path):  # asked first: on a read-only disk, unlink fails for what is not there
            return False
        about = path.read_text(errors="replace") if request else ""
        with suppress(OSError):
            path.unlink()
        return about == request

    def checkpoints(self, job: str) -> Kept:
        """The checkpoints of `job`."""
        return Kept(self.folder / "checkpoints" / job)


class Kept:
    """A job's checkpoints on disk: its seed, the common rows, and the last two steps.

    Two, since parties may be one step apart.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._done, self._aligned = folder, 0, False
        self._seed = folder / "seed"

    @property
    def steps(self) -> list[int]:
        """Steps after which a state is kept, ascending."""
        if not self._seed.exists():  # what is left of a job that was being forgotten
            return []
        return sorted(int(path.stem) for path in self._folder.glob("*.safetensors") if path.stem.isdecimal())

    @property
    def aligned(self) -> bool:
        """Whether the common rows are kept."""
        return self._seed.exists() and self._place(ALIGNED).exists()

    @property
    def some(self) -> bool:
        """Whether there is something to go on after."""
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
        self._delete(self._place(step) for step in self.steps if step > done)
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
        """Steps that were done, as agreed, and the state after them."""
        return (self._done, self._load(self._done)) if self._done else (0, None)

    def alignment(self) -> Arrays | None:
        """What is kept of the common rows, if all agreed to go on with them."""
        return self._load(ALIGNED) if self._aligned else None

    def save(self, done: int, state: Arrays) -> None:
        """Keep `state` after `done` steps. DataError for what the disk refuses."""
        self._save(done, state)
        self._delete(self._place(step) for step in self.steps if step < done - 1)

    def save_alignment(self, state: Arrays) -> None:
        """Keep the common rows. DataError for what the disk refuses."""
        self._save(ALIGNED, state)

    def _place(self, step: int | str) -> Path:
        return self._folder / f"{step}.safetensors"

    def _load(self, step: int | str) -> Arrays:
        path = self._place(step)
        try:
            return Arrays(safetensors.numpy.load(path.read_bytes()))
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError(f"the checkpoint {path} cannot be read: {type(error).__name__}") from None

    def _save(self, step: int | str, state: Arrays) -> None:
        if not self._seed.exists():
            self.drop()
            write_whole(self._seed, f"{self.seed:064x}".encode())
        write_whole(self._place(step), safetensors.numpy.save(dict(state)), durable=False)

    def _delete(self, paths: Iterable[Path]) -> None:
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise DataError(f"{path} cannot be deleted: {error.strerror or error}") from None

    def drop(self) -> None:
        """Forget all."""
        shutil.rmtree(self._folder, ignore_errors=True)


def common_step(answers: Sequence[Sequence[int]]) -> int:
    """The last step that all have a checkpoint of; 0 if there is none."""
    return max(set.intersection(*map(set, answers)), default=0) if answers else 0


@cache
def release() -> str:
    """The version of vfl-toolkit that runs here."""
    try:
        return version("vfl-toolkit")
    except PackageNotFoundError:
        return "not installed"


def renewing(control: Control, peers: Sequence[str], word: Renew) -> asyncio.Task[None]:
    """A task that renews the lease at `peers` until it is cancelled."""

    async def renew(peer: str) -> None:
        while True:
            with suppress(Exception):  # whoever is not there is noticed by what waits for it
                await control.say(peer, word)
            await asyncio.sleep(RENEW)

    async def all_of_them() -> None:  # each by itself: one that takes nothing holds up no other's lease
        await asyncio.gather(*map(renew, peers))

    return asyncio.create_task(all_of_them())


def unfinished(path: Path) -> Path:
    """Where `write_whole` writes what becomes `path`; a process that was killed leaves it there."""
    return path.with_name(f".{path.name}.new")


def write_whole(path: Path, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Whole or not at all, readable by the owner only."""
    try:
        private.make(path.parent)
        new = unfinished(path)
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}; is there space, and may we write there?"
        ) from None
