"""A rule that grants everything, a job that it grants, and what earlier jobs left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from protocols.policy.history import KEY, History
from protocols.policy.judge import Request
from protocols.policy.rules import Rule

EMPTY = History(bytes(KEY))
OPEN = Rule(
    peers=("*",),
    methods=("*",),
    actions=("fit", "predict", "align"),
    columns=("*",),
    show_columns=True,
    protocols=("ecdh", "kkrt", "unbalanced"),
    consent="grant",
    consent_predict="grant",
    min_intersection=0,
    min_group=0,
    allow_plain=True,
    max_predictions=0,
    max_distinct_ids=0,
    max_asked_job=0,
    max_asked_day=0,
    max_asked=0,
    max_fits=0,
    min_difference=0,
)
JOB = Request(
    peer="bank",
    job="job-7",
    action="fit",
    method="vertical-net",
    parameters={"epochs": 10, "hidden": [64, 32]},
    table="main",
    columns=None,
    plain=True,
    when=datetime(2026, 6, 1, 12, tzinfo=UTC),
)
PREDICT = replace(JOB, action="predict")


def ids(count: int, start: int = 0) -> list[bytes]:
    return [str(n).encode() for n in range(start, start + count)]


def fitted(rows: Sequence[bytes], history: History = EMPTY) -> History:
    return history.with_fit(history.fingerprints(rows))


def predicted(rows: Sequence[bytes], history: History = EMPTY) -> History:
    return history.with_predicted(history.fingerprints(rows))


def rule(**changes: Any) -> Rule:
    return OPEN.model_copy(update=changes)
