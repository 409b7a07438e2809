"""The checks while a job runs: each stops what crosses it, and nothing passes before it is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protocols.errors import PolicyError
from protocols.policy.history import History
from protocols.policy.judge import Guard, Request
from tests.support.granted import EMPTY, JOB, OPEN, PREDICT, fitted, ids, predicted, rule


class Kept:
    """Records what a guard hands over, as the store would."""

    def __init__(self) -> None:
        self.histories: list[History] = []

    def __call__(self, history: History) -> None:
        self.histories.append(history)


def guard(job: Request, history: History = EMPTY, **changes: Any) -> tuple[Guard, Kept]:
    kept = Kept()
    return Guard(rule(**changes), job, history, kept), kept


def refused(clause: str, call: Any, *args: Any) -> str:
    with pytest.raises(PolicyError) as caught:
        call(*args)
    assert caught.value.clause == clause and str(caught.value).startswith(f"{clause}: ")
    return str(caught.value)


@given(st.integers(0, 30), st.integers(0, 30))
def test_fewer_rows_than_the_least_are_refused(least: int, rows: int) -> None:
    counted: list[tuple[str, Callable[[Guard], None]]] = [
        ("min_intersection", lambda one: one.intersection(rows)),
        ("min_intersection", lambda one: one.rows(ids(rows))),
        ("min_intersection", lambda one: one.learns(ids(rows))),
        ("min_group", lambda one: one.group(rows)),
    ]
    for clause, call in counted:
        one, _ = guard(JOB, EMPTY, **{clause: least})
        if rows < least:
            assert str(least) in refused(clause, call, one)
        else:
            call(one)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), max_size=6), st.integers(0, 8))
def test_no_two_fits_differ_by_less_than_the_least(windows: list[tuple[int, int]], least: int) -> None:
    history, passed = EMPTY, list[frozenset[bytes]]()
    for start, count in windows:
        one, kept = guard(JOB, history, min_difference=least)
        rows = frozenset(ids(count, start))
        close = any(0 < len(rows ^ earlier) < least for earlier in passed)
        if close:
            refused("min_difference", one.rows, list(rows))
        else:
            one.rows(list(rows))
            passed.append(rows)
        history = one.history
        assert len(history.fits) == len(set(passed))
        assert not kept.histories or history is kept.histories[-1]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), max_size=6), st.integers(1, 15))
def test_no_more_distinct_ids_are_predicted_than_granted(windows: list[tuple[int, int]], most: int) -> None:
    history, seen = EMPTY, set[bytes]()
    for start, count in windows:
        one, _ = guard(PREDICT, history, max_distinct_ids=most)
        seen |= set(ids(count, start))
        if len(seen) > most:
            refused("max_distinct_ids", one.rows, ids(count, start))
        else:
            one.rows(ids(count, start))
        history = one.history
        assert history.distinct == len(seen)  # aligning told the peer of the refused ones too


# One example for each clause of the guard, all other clauses met.
STOPPED: dict[str, tuple[Request, History, int, list[bytes]]] = {
    "min_intersection": (JOB, EMPTY, 6, ids(5)),
    "min_difference": (JOB, fitted(ids(5)), 3, ids(7)),
    "max_distinct_ids": (PREDICT, predicted(ids(5)), 6, ids(7)),
    "max_fits": (JOB, fitted(ids(5)), 1, ids(7)),
}


@pytest.mark.parametrize("clause", STOPPED)
def test_each_clause_of_the_guard_stops_a_job_by_itself(clause: str) -> None:
    job, history, limit, rows = STOPPED[clause]
    one, _ = guard(job, history, **{clause: limit})
    said = refused(clause, one.rows, rows)
    assert str(len(rows)) not in said
    if clause == "max_fits":
        one.rows(ids(5))  # one of those that there are
    for met in (
        0,
        {"min_intersection": 5, "min_difference": 2, "max_distinct_ids": 7, "max_fits": 2}[clause],
    ):
        guard(job, history, **{clause: met})[0].rows(rows)


def test_the_guard_asks_about_the_protocol_whatever_the_parameters_call_it() -> None:
    """The caller's parameters are looked at before; this is what holds where they do not name it."""
    one, _ = guard(JOB, EMPTY, protocols=("ecdh",))
    one.protocol("ecdh")
    one.protocol("auto")
    for other in ("kkrt", "unbalanced"):
        with pytest.raises(
            PolicyError, match=f"protocols: ids may not be compared by {other}; granted are ecdh"
        ):
            one.protocol(other)


def test_equal_rows_are_no_difference_and_other_actions_are_not_compared() -> None:
    history = fitted(ids(5))
    guard(JOB, history, min_difference=3)[0].rows(reversed(ids(5)))
    for action in ("predict", "align"):
        guard(replace(JOB, action=action), history, min_difference=3)[0].rows(ids(6))


def test_too_few_rows_are_predicted_in_vain_but_counted() -> None:
    one, kept = guard(PREDICT, min_intersection=10)
    refused("min_intersection", one.rows, ids(4))
    assert kept.histories[-1].distinct == 4


def test_a_predict_job_counts_from_its_start_and_once() -> None:
    one, kept = guard(PREDICT)
    one.start()
    assert kept.histories[-1].predictions == 1 and one.history is kept.histories[-1]
    again, kept = guard(PREDICT, one.history)
    again.start()
    assert kept.histories[-1].predictions == 1
    other, kept = guard(JOB)
    other.start()
    assert kept.histories == []


def test_nothing_passes_before_it_is_recorded() -> None:
    def full(history: History) -> None:
        raise OSError("disk full")

    def attempts() -> Iterator[Any]:
        yield Guard(OPEN, PREDICT, EMPTY, full).start
        yield lambda: Guard(OPEN, PREDICT, EMPTY, full).rows(ids(3))
        yield lambda: Guard(OPEN, JOB, EMPTY, full).rows(ids(3))

    for attempt in attempts():
        with pytest.raises(OSError, match="disk full"):
            attempt()


def test_a_fit_that_is_resumed_passes_again() -> None:
    one, kept = guard(JOB, min_difference=5)
    one.rows(ids(20))
    again, kept = guard(JOB, kept.histories[-1], min_difference=5)
    again.rows(ids(20))
    assert len(again.history.fits) == 1


def test_each_attempt_that_compares_ids_is_counted() -> None:
    one, kept = guard(JOB, min_intersection=10)
    one.announced("mill", 30, 20)  # another guard's
    assert not len(one.history.of(JOB.job))
    one.announced(JOB.peer, 30, 20)
    assert kept.histories[-1].of(JOB.job)[["announced", "matched"]].tolist() == [(30, 20)]
    refused("min_intersection", one.rows, ids(4))  # the peer has found them nevertheless
    assert kept.histories[-1].of(JOB.job)[["announced", "matched"]].tolist() == [(30, 4)]
    assert kept.histories[-1].found == 4
    again, kept = guard(JOB, one.history)
    again.announced(JOB.peer, 50, 20)  # another attempt, with ids that may be others
    again.rows(ids(6, start=2))
    assert again.history.of(JOB.job)[["announced", "matched"]].tolist() == [(30, 4), (50, 6)]
    assert again.history.found == 8


HOURS = st.sampled_from([0, 1, 23, 25, 30, 24 * 7])


@given(
    st.lists(st.tuples(st.sampled_from(["job-7", "job-8"]), st.integers(0, 9), HOURS), max_size=6),
    st.integers(0, 9),
    *(st.integers(0, 30) for _ in range(3)),
)
def test_no_more_ids_are_asked_about_than_granted(
    earlier: list[tuple[str, int, int]], ids: int, job: int, day: int, every: int
) -> None:
    """In a job, in a day, in all; what is refused is not recorded, as nothing was learnt of it."""
    now = datetime.now(UTC)
    history = EMPTY
    for name, count, hours in sorted(earlier, key=lambda one: -one[2]):
        history = history.with_alignment(name, count, 0, now - timedelta(hours=hours))
    sums = {
        "max_asked_job": (job, sum(n for name, n, _ in earlier if name == JOB.job)),
        "max_asked_day": (day, sum(n for _, n, hours in earlier if hours < 24)),
        "max_asked": (every, sum(n for _, n, _ in earlier)),
    }
    limits = {clause: limit for clause, (limit, _) in sums.items()}
    crossed = [clause for clause, (limit, before) in sums.items() if limit and before + ids > limit]
    one, kept = guard(JOB, history, **limits)
    if crossed:
        assert str(limits[crossed[0]]) in refused(crossed[0], one.announced, JOB.peer, ids, 0)
        assert kept.histories == []
    else:
        one.announced(JOB.peer, ids, 0)
        assert kept.histories[-1].aligned["announced"].sum() == sums["max_asked"][1] + ids
    one.announced("mill", 10**6, 0)  # is for that peer's own guard


def test_what_was_asked_long_ago_still_counts_in_all() -> None:
    history, now = EMPTY, datetime.now(UTC)
    for days in (30, 20, 10):
        history = history.with_alignment(f"job {days}", 100, 0, now - timedelta(days=days))
    guard(JOB, history, max_asked=310)[0].announced(JOB.peer, 10, 0)
    refused("max_asked", guard(JOB, history, max_asked=310)[0].announced, JOB.peer, 11, 0)


def test_what_an_alignment_alone_found_is_counted_by_number() -> None:
    one, kept = guard(replace(JOB, action="align"))
    one.announced(JOB.peer, 30, 20)
    one.rows(ids(7))
    assert kept.histories[-1].of(JOB.job)["matched"].tolist() == [7] and kept.histories[-1].found == 0


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 8))
def test_rows_that_are_left_out_of_a_fit_are_a_difference(left_out: int, before: int, least: int) -> None:
    """Of all rows of the job, and of those that an earlier job learnt from."""
    assume(not before or before >= least)
    history = fitted(ids(20 - before), fitted(ids(20)))
    one, _ = guard(JOB, history, min_difference=least)
    one.rows(ids(20))
    apart = [n for n in (left_out, abs(left_out - before)) if n]
    if apart and min(apart) < least:
        refused("min_difference", one.learns, ids(20 - left_out))
        assert len(one.history.fits) == len(history.fits)
    else:
        one.learns(ids(20 - left_out))
        assert one.history.nearest_fit(one.history.fingerprints(ids(20))) == min(
            (n for n in (left_out, before) if n), default=None
        )


@given(st.integers(0, 12), st.integers(0, 8))
def test_rounds_learn_from_the_same_rows_or_from_rather_different_ones(rows: int, least: int) -> None:
    one, kept = guard(JOB, EMPTY, min_difference=least)
    if 0 < rows < least:
        assert str(least) in refused("min_difference", one.difference, rows)
    else:
        one.difference(rows)
    assert kept.histories == []
