"""What one peer may take of a party's loop: by how long its words are, and how often they come."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocols.service import budget
from protocols.service.budget import TOO_MUCH, Budget
from protocols.service.consent import LARGEST
from protocols.service.jobs import LEASE, LONGEST, LONGEST_OTHER, Answer, Cancel, Ended, Propose, Sealed, Word
from protocols.wire.codec import encode

OF: dict[str, Any] = {"job": "0" * 16, "attempt": 1_000_000}
NAMES = [f"{n:063}" for n in range(1000)]
WIDE = "\N{PILE OF POO}"  # twelve bytes of JSON, at most
PADDING: dict[str, Any] = {"a": "x" * (LARGEST - len(json.dumps({"a": ""})))}
WORDS = [
    Propose(
        **OF,
        program=WIDE * 63,
        action="predict",
        parameters=PADDING,
        parties=NAMES,
        table=WIDE * 63,
        run="0" * 16,
        schemas="0" * 64,
        version=WIDE * 64,
    ),
    Sealed(**OF, digests=dict.fromkeys(NAMES, "0" * 64)),
    Cancel(**OF, why=WIDE * 2000),
    Answer(**OF, state="refused", error=WIDE * 63, scope=WIDE * 512, reason=1000 * WIDE, steps=(2**60,) * 64),
    Ended(**OF, digest="0" * 64, party=63 * WIDE, scope=WIDE * 512, error=WIDE * 63, reason=WIDE * 1000),
]


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.kind)
def test_the_longest_word_that_an_honest_party_says_is_read(word: Word) -> None:
    assert len(encode(word)) <= LONGEST.get(word.kind, LONGEST_OTHER)


def test_a_disk_that_hangs_is_not_held_against_a_peer_until_its_lease_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While its budget is spent a peer is not heard, and one that is not heard for long loses its job."""
    now = 0.0
    monkeypatch.setattr(budget, "monotonic", lambda: now)
    spent = Budget()
    spent.take(3600.0)
    now = LEASE / 2
    assert spent.taken <= TOO_MUCH


def test_what_is_taken_again_and_again_is_at_most_a_share_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = had = 0.0
    monkeypatch.setattr(budget, "monotonic", lambda: now)
    spent = Budget()
    while now < 1000.0:
        if spent.taken <= TOO_MUCH:
            spent.take(0.1)
            had, now = had + 0.1, now + 0.1
        else:
            now += 0.05
    assert 0.9 * budget.SHARE < had / now < 1.1 * budget.SHARE
