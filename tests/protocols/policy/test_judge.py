"""Each clause of a policy: a law over any rule and job, and an example that crosses it and nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protocols.errors import PolicyError
from protocols.policy.history import History
from protocols.policy.judge import CLAUSES, Decision, Request, judge
from protocols.policy.rules import Bound, Rule
from tests.support.granted import EMPTY, JOB, OPEN, PREDICT, ids, predicted, rule


def test_what_a_rule_grants_is_granted() -> None:
    for job in (JOB, PREDICT, replace(JOB, action="align"), replace(JOB, columns=("age",))):
        decision = judge([OPEN], job, EMPTY)
        assert (decision.verdict, decision.rule, decision.columns) == ("granted", OPEN, job.columns)
        assert decision.check() is OPEN


# One example for each clause of `judge`: the rule, the job and the history that cross it, and the words.
CROSSED: dict[str, tuple[dict[str, Any], Request, History, str]] = {
    "expires": (
        {"expires": date(2026, 6, 1)},
        JOB,
        EMPTY,
        "what was granted ended on 2026-06-01 (UTC); ask the owner to renew it",
    ),
    "actions": ({"actions": ("align",)}, JOB, EMPTY, "fit is not granted; granted are align"),
    "show_columns": (
        {"show_columns": False},
        replace(JOB, columns=("age",)),
        EMPTY,
        "this table's columns are not named to its peers; leave the columns to their owner",
    ),
    "columns": (
        {"columns": ("age", "calls")},
        replace(JOB, columns=("age", "cals")),
        EMPTY,
        "'cals' is not granted; did you mean 'calls'?",
    ),
    "parameters": (
        {"parameters": {"*": {"epochs": Bound(max=9)}}},
        JOB,
        EMPTY,
        "epochs should be at most 9",
    ),
    "allow_plain": (
        {"allow_plain": False},
        JOB,
        EMPTY,
        "methods that send embeddings, gradients or updates in the clear are not granted; ask the owner",
    ),
    "protocols": (
        {"protocols": ("ecdh", "unbalanced")},
        replace(JOB, parameters={"protocol": "kkrt"}),
        EMPTY,
        "ids may not be compared by kkrt; granted are ecdh, unbalanced",
    ),
    "max_predictions": (
        {"max_predictions": 1},
        PREDICT,
        EMPTY.with_prediction("job-1"),
        "all 1 predict jobs that are granted were used; ask the owner for more",
    ),
    "max_distinct_ids": (
        {"max_distinct_ids": 2},
        PREDICT,
        predicted(ids(3)),
        "predictions were granted for 2 distinct ids, and these would be more; ask the owner",
    ),
}


@pytest.mark.parametrize("clause", CLAUSES)
def test_each_clause_refuses_and_says_why(clause: str) -> None:
    changes, job, history, said = CROSSED[clause]
    decision = judge([rule(**changes)], job, history)
    assert (decision.verdict, decision.clause, decision.reason) == ("refused", clause, said)
    with pytest.raises(PolicyError) as caught:
        decision.check()
    assert (caught.value.clause, str(caught.value)) == (clause, f"{clause}: {said}")
    assert judge([OPEN], job, history).verdict == "granted"  # nothing but the clause was in the way


@pytest.mark.parametrize("clause", CLAUSES)
def test_each_clause_can_fail(clause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, job, history, _ = CROSSED[clause]
    monkeypatch.delitem(CLAUSES, clause)
    assert judge([rule(**changes)], job, history).verdict == "granted"


# Laws over any rule, job and history.

_names = st.lists(st.sampled_from(["a", "b", "c"]), max_size=3, unique=True).map(tuple)
_some = _names | st.just(("*",))
_counts = st.integers(0, 4)
_rules = st.builds(
    Rule,
    peers=_some.filter(bool),
    tables=_some,
    methods=_some,
    actions=st.lists(st.sampled_from(["fit", "predict", "align"]), unique=True).map(tuple),
    columns=_some,
    show_columns=st.booleans(),
    consent=st.sampled_from(["ask", "grant"]),
    consent_predict=st.sampled_from(["ask", "grant"]),
    allow_plain=st.booleans(),
    protocols=st.lists(st.sampled_from(["ecdh", "kkrt", "unbalanced"]), unique=True).map(tuple),
    max_predictions=_counts,
    max_distinct_ids=_counts,
    min_difference=_counts,
    min_intersection=_counts,
    min_group=_counts,
    expires=st.none() | st.dates(date(2026, 5, 30), date(2026, 6, 3)),
    parameters=st.dictionaries(
        st.sampled_from(["a", "b", "*"]),
        st.dictionaries(st.sampled_from(["x", "y"]), st.builds(Bound, max=_counts.map(float))),
    ),
)
_jobs = st.builds(
    Request,
    peer=st.sampled_from("abc*"),
    job=st.sampled_from(["job-1", "job-2", "job-3"]),
    action=st.sampled_from(["fit", "predict", "align"]),
    method=st.sampled_from("abc*"),
    parameters=st.dictionaries(st.sampled_from(["x", "y", "z"]), st.integers(0, 5))
    | st.fixed_dictionaries({"protocol": st.sampled_from(["auto", "ecdh", "kkrt", "unbalanced"])}),
    table=st.sampled_from("abc*"),
    columns=st.none() | _names,
    plain=st.booleans(),
    when=st.datetimes(datetime(2026, 5, 30), datetime(2026, 6, 3), timezones=st.just(UTC)),
)


@st.composite
def histories(draw: st.DrawFn) -> History:
    history = EMPTY
    for job in draw(st.lists(st.sampled_from(["job-1", "job-2", "old"]))):
        history = history.with_prediction(job)
    return predicted(ids(draw(st.integers(0, 6))), history)


def named(names: tuple[str, ...], name: str) -> bool:
    return name != "*" and (names == ("*",) or name in names)


def allowed(r: Rule, job: Request, history: History) -> bool:
    """Whether a rule refuses nothing of a job: every clause again, in the words of the guide."""
    bounds = {**r.parameters.get("*", {}), **r.parameters.get(job.method, {})}
    own = r.parameters.get(job.method, {})
    others = history.predictions - history.began(job.job)
    protocol = job.parameters.get("protocol", "auto")
    return (
        (r.expires is None or job.when.date() < r.expires)
        and job.action in r.actions
        and (job.columns is None or (r.show_columns and all(named(r.columns, c) for c in job.columns)))
        and (bool(r.columns) or job.action == "align")
        and all(name in job.parameters for name in own)
        and all(job.parameters[n] <= (b.max or 0) for n, b in bounds.items() if n in job.parameters)
        and (r.allow_plain or not job.plain)
        and (
            "protocol" not in job.parameters
            or (protocol in r.protocols if protocol != "auto" else set(r.protocols) - {"unbalanced"} != set())
        )
        and (
            job.action != "predict"
            or (
                (not r.max_predictions or others < r.max_predictions or history.began(job.job))
                and (not r.max_distinct_ids or history.distinct <= r.max_distinct_ids)
            )
        )
    )


@given(st.lists(_rules, max_size=3), _jobs, histories())
def test_the_first_rule_that_covers_a_job_decides(rules: list[Rule], job: Request, history: History) -> None:
    decision = judge(rules, job, history)
    covering = [
        r
        for r in rules
        if named(r.peers, job.peer) and named(r.tables, job.table) and named(r.methods, job.method)
    ]
    if not covering:
        assert decision == Decision("refused", "policy", decision.reason)
        return
    first = covering[0]
    assert decision.rule is first
    assert (decision.verdict != "refused") == allowed(first, job, history)
    if decision.verdict != "refused":
        consent = first.consent_predict if job.action == "predict" else first.consent
        assert decision.verdict == {"ask": "ask", "grant": "granted"}[consent]
        assert decision.clause == ("consent_predict" if job.action == "predict" else "consent")
        expected = job.columns if job.columns is not None else first.columns
        assert decision.columns == (None if expected == ("*",) else expected)


def test_a_refusal_by_an_earlier_rule_is_final() -> None:
    strict = rule(peers=("bank",), actions=())
    assert judge([strict, OPEN], JOB, EMPTY).clause == "actions"
    assert judge([OPEN, strict], JOB, EMPTY).verdict == "granted"
    assert judge([strict, OPEN], replace(JOB, peer="shop"), EMPTY).verdict == "granted"
    assert judge([strict.model_copy(update={"methods": ()}), OPEN], JOB, EMPTY).verdict == "granted"


def test_without_a_rule_nothing_tells_what_there_is() -> None:
    told = {
        judge([rule(peers=("bank",), tables=("main",), methods=("fedavg",))], job, EMPTY)
        for job in (JOB, replace(JOB, table="none"), replace(JOB, peer="shop"), replace(JOB, method="x"))
    }
    assert told == {judge([], JOB, EMPTY)} and JOB.table not in told.pop().reason


@given(_names, _names, _names)
def test_hidden_columns_cannot_be_guessed(
    columns: tuple[str, ...], guess: tuple[str, ...], other: tuple[str, ...]
) -> None:
    hidden = rule(show_columns=False, columns=columns or ("*",))
    one, two = (judge([hidden], replace(JOB, columns=names), EMPTY) for names in (guess, other))
    assert one.reason == two.reason and one.verdict == two.verdict == "refused"


def test_a_grant_ends_with_the_day_before_whatever_the_zone() -> None:
    ends = rule(expires=date(2026, 6, 1))
    zone = timezone(timedelta(hours=9))
    last = datetime(2026, 5, 31, 23, 59, 59, tzinfo=UTC)
    for when, verdict in [
        (last, "granted"),
        (last + timedelta(seconds=1), "refused"),
        (last.astimezone(zone), "granted"),  # there it is June already
    ]:
        assert judge([ends], replace(JOB, when=when), EMPTY).verdict == verdict


def test_a_bound_of_a_method_stands_in_for_that_of_all() -> None:
    bounds = {"*": {"epochs": Bound(max=5)}, "vertical-net": {"epochs": Bound(max=10)}}
    assert judge([rule(parameters=bounds)], JOB, EMPTY).verdict == "granted"
    assert judge([rule(parameters=bounds)], replace(JOB, method="x"), EMPTY).clause == "parameters"


def test_a_bounded_parameter_of_a_method_has_to_be_said() -> None:
    bounds = {"vertical-net": {"rate": Bound(max=1)}, "*": {"other": Bound(max=1)}}
    decision = judge([rule(parameters=bounds)], JOB, EMPTY)
    assert decision.reason == "rate should be at most 1, and the job does not say it"


def test_each_clause_is_for_its_own_action() -> None:
    align = replace(JOB, action="align")
    assert judge([rule(columns=())], align, EMPTY).verdict == "granted"  # alignment computes with no column
    assert judge([rule(columns=())], JOB, EMPTY).reason.startswith("no column is granted;")
    assert judge([rule(max_distinct_ids=2)], JOB, predicted(ids(3))).verdict == "granted"
    assert judge([rule(max_predictions=1)], align, EMPTY.with_prediction("job-1")).verdict == "granted"
    for job, asking, other in [
        (PREDICT, "consent_predict", "consent"),
        (JOB, "consent", "consent_predict"),
        (align, "consent", "consent_predict"),
    ]:
        decision = judge([rule(**{asking: "ask"})], job, EMPTY)
        assert (decision.verdict, decision.clause, decision.check().peers) == ("ask", asking, ("*",))
        assert judge([rule(**{other: "ask"})], job, EMPTY).verdict == "granted"


def test_the_columns_of_a_job_are_those_named_else_those_granted() -> None:
    some = rule(columns=("age", "calls"))
    for named_ones, granted in [(None, ("age", "calls")), ((), ()), (("calls",), ("calls",))]:
        assert judge([some], replace(JOB, columns=named_ones), EMPTY).columns == granted
    assert judge([OPEN], replace(JOB, columns=None), EMPTY).columns is None


def test_a_prediction_is_not_run_twice_and_fitting_is_none() -> None:
    """Else a number whose record is gone would be good for any number of predictions."""
    for most in (0, 1, 5):
        said = judge([rule(max_predictions=most)], PREDICT, EMPTY.with_prediction(PREDICT.job))
        assert (said.verdict, said.clause) == (
            "refused",
            "max_predictions",
        ) and "not run twice" in said.reason
    assert judge([rule(max_predictions=1)], JOB, EMPTY.with_prediction("other")).verdict == "granted"


def test_what_was_predicted_may_be_predicted_again() -> None:
    assert judge([rule(max_distinct_ids=3)], PREDICT, predicted(ids(3))).verdict == "granted"


@given(_rules, _jobs, histories())
def test_reasons_name_no_hidden_column(r: Rule, job: Request, history: History) -> None:
    assume(not r.show_columns)
    r = r.model_copy(update={"columns": ("canary-1", "canary-2")})
    assert "canary" not in judge([r], job, history).reason
