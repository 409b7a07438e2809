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
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from protocols.errors import ConfigError, ProtocolError
from protocols.policy.rules import Action
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
        """Return whether the job starts from the beginning."""
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
    """A peer's message about jobs is not one of the words of this conversation."""


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
        """Wait for the next word from `sender`. A message that is no word is taken and raises NoWordError.

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


# What is kept in a store, whoever keeps it there.
HOLDS: tuple[str, ...] = ("jobs", "approve", "cancel", "checkpoints", "parts", "scratch", "_history")
HOLDS += ("unbalanced", "unbalanced-lock", "ledger.jsonl", "status.json")


def renewing(control: Control, peers: Sequence[str], word: Renew) -> asyncio.Task[None]:
    """Run a task that renews the lease at `peers` until it is cancelled."""

    async def renew(peer: str) -> None:
        while True:
            with suppress(Exception):  # whoever is not there is noticed by what waits for it
                await control.say(peer, word)
            await asyncio.sleep(RENEW)

    async def all_of_them() -> None:  # each by itself: one that takes nothing holds up no other's lease
        await asyncio.gather(*map(renew, peers))

    return asyncio.create_task(all_of_them())
