"""What parties say about jobs, and the parameters of a method that a proposal brings."""

from __future__ import annotations

import json
from importlib.metadata import entry_points

from protocols.errors import ConfigError, ProtocolError
from protocols.programs import GROUP, program
from protocols.service.jobs import (
    KINDS,
    Answer,
    Cancel,
    Claim,
    Ended,
    Over,
    Prepare,
    Propose,
    Renew,
    Sealed,
    Start,
    Word,
)
from protocols.wire.codec import decode, encode
from tests.fuzz import target

JOB = "0123456789abcdef"
PARAMETERS = {"target": "default", "seed": 3, "epochs": 2, "hidden": [8, 8], "learning_rate": 0.1}
NAMES = sorted(KINDS)


def words() -> list[bytes]:
    """Each kind once, after one byte that says which."""
    said: list[Word] = [
        Propose(
            job=JOB,
            attempt=1,
            program="vertical",
            action="fit",
            parameters={"hidden": [3, {"a": None}], "rate": 0.5},
            parties=["bank", "shop"],
            table="",
            run="",
            schemas="0" * 64,
            version="0.1.0",
        ),
        Answer(job=JOB, attempt=1, state="refused", error="PolicyError", reason="no", steps=(0, 2)),
        Ended(job=JOB, attempt=2, digest="f" * 64),
        Start(job=JOB, attempt=1, done=0),
        Sealed(job=JOB, attempt=1, digests={"bank": "a" * 64}),
        *(kind(job=JOB, attempt=1) for kind in (Claim, Prepare, Renew, Cancel, Over)),
    ]
    return [bytes([NAMES.index(word.kind)]) + bytes(encode(word)) for word in said]


@target(words)
def control(raw: bytes) -> None:
    """Any bytes of any kind are a word about jobs, equal when it is said again, or a ProtocolError."""
    if not raw:
        return
    kind = KINDS[NAMES[raw[0] % len(NAMES)]]
    try:
        word = decode(kind, raw[1:], sender="bank", scope="jobs")
    except ProtocolError:
        return
    try:
        again = encode(word)
    except ConfigError:
        return  # a mapping's keys that begin with '$' are read, and not written
    assert decode(kind, again) == word


def parameters() -> list[bytes]:
    """For each registered method, after one byte that says which."""
    said = json.dumps(PARAMETERS).encode()
    return [bytes([i]) + text for i in range(len(METHODS)) for text in (b"{}", said)]


METHODS = sorted({entry.name for entry in entry_points(group=GROUP)})


@target(parameters)
def proposed(raw: bytes) -> None:
    """Any parameters are those of the method, or a ConfigError in bounded words."""
    try:
        said = json.loads(raw[1:])
    except (ValueError, RecursionError):
        return
    if not isinstance(said, dict):
        return
    try:
        program(METHODS[raw[0] % len(METHODS)]).read(said)
    except ConfigError as error:
        assert len(str(error)) < 5_000  # noqa: PT017
