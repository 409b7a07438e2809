"""What a party lets others do with its tables: the decision on a job, and the checks while it runs.

Takes part: one party, about its own tables, on behalf of the people in them. `judge` decides on a job before
anything of it begins; `Guard` is handed to the party's role and stops it when rows turn out too few, too many
or too like earlier ones. Both are functions of values; the one thing that must outlive a job is the `History`
that a guard hands to `record` before it lets the role go on.

The peer learns whether it is granted, and of a refusal the clause and its limit: no id, no count of rows, no
column's name unless the rule shows them, and not whether a table exists. A refusal by a guard does tell that
a limit was crossed. What each clause stops, and what it does not, is in docs/guides/policy.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from protocols.errors import PolicyError, nearest
from protocols.policy.history import History
from protocols.policy.past import Prints
from protocols.policy.rules import ANY, Action, Bound, Rule, compared, has

Verdict = Literal["granted", "ask", "refused"]
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Request:
    """A job that a peer proposes, as far as one party's table is concerned."""

    peer: str
    job: str
    action: Action
    method: str  # as registered
    parameters: Mapping[str, Any] = field(repr=False)  # all of the method's, defaults filled in; JSON values
    table: str
    columns: tuple[str, ...] | None  # of this table that the peer names, a target too; None: what is granted
    plain: bool  # sends embeddings, gradients or updates in the clear
    when: datetime  # aware, by this party's own clock
    careful: Mapping[str, Bound] = field(default_factory=dict)  # of parameters, unless a rule bounds them


@dataclass(frozen=True)
class Decision:
    """The policy's answer to a request. `clause` and `reason` may be told to the peer."""

    verdict: Verdict
    clause: str
    reason: str
    rule: Rule | None = field(default=None, repr=False)  # that decided; None: no rule covers the job
    columns: tuple[str, ...] | None = field(default=None, repr=False)  # that the job may use; None: all

    def check(self) -> Rule:
        """Return the rule that decided; raise PolicyError if it refused."""
        if self.verdict == "refused" or self.rule is None:
            raise refusal(self.clause, self.reason)
        return self.rule


def judge(rules: Sequence[Rule], request: Request, history: History) -> Decision:
    """Decide by the first rule that covers `request` whether it is granted, refused or left to a person."""
    covering = (r for r in rules if r.covers(request.peer, request.table, request.method))
    rule = next(covering, None)
    if rule is None:
        said = "nothing is granted to this peer for this table and method; ask the owner for a rule"
        return Decision("refused", "policy", said)
    for clause, check in CLAUSES.items():
        if reason := check(rule, request, history):
            return Decision("refused", clause, reason, rule)
    granted = None if rule.columns == (ANY,) else rule.columns
    columns = request.columns if request.columns is not None else granted
    clause = "consent_predict" if request.action == "predict" else "consent"
    if (rule.consent_predict if request.action == "predict" else rule.consent) == "ask":
        return Decision("ask", clause, "a person has to approve this job first", rule, columns)
    return Decision("granted", clause, "granted by the policy", rule, columns)


def strictest(decisions: Mapping[str, Decision]) -> Decision:
    """What all of these decisions on one job let it do; by the peers who are to learn something from it."""
    for peer, decision in decisions.items():
        if decision.verdict == "refused":
            return replace(decision, reason=f"{decision.reason} (asked for {peer})")
    first, *others = sorted(decisions.values(), key=lambda decision: decision.verdict != "ask")
    rules = [decision.check() for decision in (first, *others)]
    lists = [rule.columns for rule in rules if rule.columns != (ANY,)]
    columns = tuple(name for name in lists[0] if all(name in names for names in lists)) if lists else (ANY,)
    if rules[0].columns and not columns:
        return Decision("refused", "columns", "no column is granted to all who would learn of it", rules[0])
    lasts = {key: min(getattr(rule, key) for rule in rules) for key in ("consent_hours", "consent_attempts")}
    return replace(first, rule=rules[0].model_copy(update={"columns": columns, **lasts}))


def _expires(rule: Rule, request: Request, history: History) -> str:
    if rule.expires is None or request.when.astimezone(UTC).date() < rule.expires:
        return ""
    return f"what was granted ended on {rule.expires} (UTC); ask the owner to renew it"


def _actions(rule: Rule, request: Request, history: History) -> str:
    granted = ", ".join(rule.actions) or "none"
    return "" if request.action in rule.actions else f"{request.action} is not granted; granted are {granted}"


def _show_columns(rule: Rule, request: Request, history: History) -> str:
    # Whatever is named is refused alike, so that guesses of names tell nothing.
    if request.columns is None or rule.show_columns:
        return ""
    return "this table's columns are not named to its peers; leave the columns to their owner"


def _columns(rule: Rule, request: Request, history: History) -> str:
    if not rule.columns and request.action != "align":
        return "no column is granted; ask the owner for some"
    for name in request.columns or ():
        if not has(rule.columns, name):
            known = [column for column in rule.columns if column != ANY]
            return f"{name!r} is not granted{nearest(name, known)}"
    return ""


def _parameters(rule: Rule, request: Request, history: History) -> str:
    bounds = rule.bounds(request.method, request.careful)
    for name, bound in bounds.items():
        if name not in request.parameters:
            # A bound of "*" is for the methods that have such a parameter.
            if name in rule.parameters.get(request.method, {}):
                return f"{name} should be {bound}, and the job does not say it"
        elif not bound.holds(request.parameters[name]):
            wider = "; a rule grants more by a bound of its own" if bound is request.careful.get(name) else ""
            return f"{name} should be {bound}{wider}"
    return ""


def _protocols(rule: Rule, request: Request, history: History) -> str:
    # The guard asks again, whatever a method calls the parameter: this is for the caller to hear it at once.
    asked = str(request.parameters.get("protocol", ""))
    return _not_let(rule, asked) if asked in ("auto", *compared()) else ""


def _not_let(rule: Rule, protocol: str) -> str:
    granted = ", ".join(rule.protocols) or "none"
    return "" if rule.lets(protocol) else f"ids may not be compared by {protocol}; granted are {granted}"


def _allow_plain(rule: Rule, request: Request, history: History) -> str:
    if rule.allow_plain or not request.plain:
        return ""
    return "methods that send embeddings, gradients or updates in the clear are not granted; ask the owner"


def _max_predictions(rule: Rule, request: Request, history: History) -> str:
    if request.action == "predict" and history.began(request.job):  # its record may be gone by now
        return "this job was run before, and a prediction is not run twice"
    if request.action != "predict" or not rule.max_predictions:
        return ""
    if history.predictions < rule.max_predictions:
        return ""
    return f"all {rule.max_predictions} predict jobs that are granted were used; ask the owner for more"


def _max_distinct_ids(rule: Rule, request: Request, history: History) -> str:
    # At the limit, ids that were predicted before may be predicted again.
    if request.action != "predict" or not rule.max_distinct_ids or history.distinct <= rule.max_distinct_ids:
        return ""
    return _too_many_ids(rule)


def _too_many_ids(rule: Rule) -> str:
    most = rule.max_distinct_ids
    return f"predictions were granted for {most} distinct ids, and these would be more; ask the owner"


Clause = Callable[[Rule, Request, History], str]
CLAUSES: dict[str, Clause] = {  # in the order in which they are judged; "" if met, else a reason
    "expires": _expires,
    "actions": _actions,
    "show_columns": _show_columns,
    "columns": _columns,
    "parameters": _parameters,
    "protocols": _protocols,
    "allow_plain": _allow_plain,
    "max_predictions": _max_predictions,
    "max_distinct_ids": _max_distinct_ids,
}


class Guard:
    """The checks while a granted job runs. Each raises PolicyError, naming the clause.

    record: keeps the history given to it, durably, before it returns; what a guard lets pass is always
    recorded first, so that a party killed at any moment has counted at least what its peer learned. A job
    that is resumed has a new guard, and calls it as before: the same job and the same rows count once.
    """

    def __init__(
        self, rule: Rule, request: Request, history: History, record: Callable[[History], None]
    ) -> None:
        self.rule, self.request, self.history = rule, request, history
        self._record = record

    def start(self) -> None:
        """Call before the role begins: from here on a predict job counts, however it ends."""
        if self.request.action == "predict":
            self._keep(self.history.with_prediction(self.request.job))

    def announced(self, peer: str, ids: int, most: int) -> None:
        """Call with how many ids `peer` announces, before it can learn which of them are here; at `most` so
        many match. Not called by an attempt that goes on after an alignment: that compares no ids."""
        if peer != self.request.peer:
            return
        when, job, rule = datetime.now(UTC), self.request.job, self.rule
        for clause, limit, before, where in (
            (
                "max_asked_job",
                rule.max_asked_job,
                self.history.of(job),
                "in one job, all attempts at it together",
            ),
            ("max_asked_day", rule.max_asked_day, self.history.since(when - DAY), "within 24 hours"),
            ("max_asked", rule.max_asked, self.history.aligned, "in all"),
        ):
            if limit and int(before["announced"].sum()) + ids > limit:  # nothing was learnt of these yet
                said = f"a peer may ask about {limit} ids {where}, counting all that it announces, each time"
                raise refusal(clause, f"{said}, and these would be more; bring fewer, or ask the owner")
        self._keep(self.history.with_alignment(job, ids, most, when))

    def rows(self, ids: Iterable[bytes]) -> None:
        """Call with the canonical ids of the rows that the job uses, as soon as they are known.

        Checks their number, when predicting the budget of distinct ids, when fitting the difference from
        earlier row sets.
        """
        known = ids if isinstance(ids, Sized) else list(ids)
        history = self.history.with_matched(self.request.job, len(known))
        if self.request.action == "align":  # of them, their number is all that is kept
            self._keep(history)
            return self.intersection(len(known))
        # Recorded even if refused below: by aligning, the peer has learned that we have these ids.
        rows, predicts = history.fingerprints(known), self.request.action == "predict"
        self._keep(history.with_predicted(rows) if predicts else history.with_found(rows))
        if predicts and self.rule.max_distinct_ids and self.history.distinct > self.rule.max_distinct_ids:
            raise refusal("max_distinct_ids", _too_many_ids(self.rule))
        self.intersection(len(rows))
        if not predicts:
            self._compare(rows, "use the same rows, or more")

    def learns(self, ids: Iterable[bytes]) -> None:
        """Call with the canonical ids of the rows that a model learns from, where they are only some of those
        that `rows` was told of.

        The same limits on number and difference hold for them, also in comparison with all of the job's rows,
        from which another job may learn.
        """
        rows = self.history.fingerprints(ids)
        if len(rows) < self.rule.min_intersection:
            said = f"a model would learn from fewer than {self.rule.min_intersection} rows"
            raise refusal("min_intersection", f"{said}; take more rows, hold out fewer, or weigh more")
        self._compare(rows, "hold out, or leave out by weights of 0, the same rows as before, or more")

    def difference(self, rows: int) -> None:
        """Call before statistics over another set of rows leave, with how many rows are either in this set or
        in an earlier one of the same job."""
        if 0 < rows < self.rule.min_difference:
            said = f"two rounds would learn from rows that differ by fewer than {self.rule.min_difference}"
            raise refusal("min_difference", f"{said}; draw fewer rows a round, or all")

    def _compare(self, rows: Prints, advice: str) -> None:
        """Refuse a set of rows that nearly is an earlier one, and remember it."""
        differs = self.history.nearest_fit(rows)
        if differs is not None and differs < self.rule.min_difference:
            least = self.rule.min_difference
            said = f"the rows differ from an earlier job's, by fewer than {least}"
            raise refusal("min_difference", f"{said}; {advice}")
        most = self.rule.max_fits
        if most and len(self.history.fits) >= most and not self.history.fitted(rows):
            said = f"models were fitted on all {most} sets of rows that are granted"
            raise refusal("max_fits", f"{said}; use one of them again, or ask the owner for more")
        # Not recorded if refused: nothing was learned from them, and they would stand in later jobs' way.
        self._keep(self.history.with_fit(rows))

    def intersection(self, rows: int) -> None:
        """Check the number of matched rows, or an upper bound of it, where their ids are not known here."""
        if rows < self.rule.min_intersection:
            least = self.rule.min_intersection
            raise refusal("min_intersection", f"fewer than {least} rows match; take more rows")

    def protocol(self, name: str) -> None:
        """Call before ids are compared, and anything for that leaves, with the protocol's name or "auto"."""
        if reason := _not_let(self.rule, name):
            raise refusal("protocols", reason)

    def lets(self, protocol: str) -> bool:
        """Return whether the policy would let ids be compared by `protocol`."""
        return self.rule.lets(protocol)

    def group(self, rows: int) -> None:
        """Call before a statistic leaves, with the number of rows behind it."""
        if rows < self.rule.min_group:
            least = self.rule.min_group
            raise refusal("min_group", f"a statistic would be of fewer than {least} rows; take more rows")

    def _keep(self, history: History) -> None:
        if history is self.history:
            return
        self._record(history)
        self.history = history


class Guards:
    """The guards of one job, one for each peer who learns something from it. If one refuses, all do."""

    def __init__(self, guards: Iterable[Guard]) -> None:
        self._guards = tuple(guards)

    def start(self) -> None:
        """As of `Guard`."""
        for guard in self._guards:
            guard.start()

    def announced(self, peer: str, ids: int, most: int) -> None:
        """As of `Guard`."""
        for guard in self._guards:
            guard.announced(peer, ids, most)

    def rows(self, ids: Iterable[bytes]) -> None:
        """As of `Guard`."""
        known = ids if isinstance(ids, Sized) else list(ids)
        for guard in self._guards:
            guard.rows(known)

    def intersection(self, rows: int) -> None:
        """As of `Guard`."""
        for guard in self._guards:
            guard.intersection(rows)

    def protocol(self, name: str) -> None:
        """As of `Guard`."""
        for guard in self._guards:
            guard.protocol(name)

    def lets(self, protocol: str) -> bool:
        """As of `Guard`."""
        return all(guard.lets(protocol) for guard in self._guards)

    def group(self, rows: int) -> None:
        """As of `Guard`."""
        for guard in self._guards:
            guard.group(rows)

    def learns(self, ids: Iterable[bytes]) -> None:
        """As of `Guard`."""
        known = list(ids)
        for guard in self._guards:
            guard.learns(known)

    def difference(self, rows: int) -> None:
        """As of `Guard`."""
        for guard in self._guards:
            guard.difference(rows)


def refusal(clause: str, reason: str) -> PolicyError:
    """Return a PolicyError for `clause`, whose words may be told to the peer."""
    error = PolicyError(f"{clause}: {reason}")
    error.clause = clause
    return error
