"""What a rule of a party's policy may say: the `[[policy]]` sections of its configuration.

Takes part: one party, about its own tables; nothing here leaves it. A rule names peers, tables and methods.
Of the rules that name all three of a job, the first in the file decides; a job that no rule names is refused.
What a rule does not say is not granted: its lists are empty until filled, and a person is asked until it says
"grant". What each clause stops, and what it does not, is in docs/guides/policy.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import entry_points
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, model_validator

from protocols.errors import nearest
from protocols.settings import Names, Section, fault

ANY = "*"
Action = Literal["fit", "predict", "align"]
Consent = Literal["ask", "grant"]
PSI = "vfl.psi"  # entry points: other packages' ways to compare two parties' ids
COMPARED = ("ecdh", "kkrt", "unbalanced")  # our own; "ecdh" is three and more's too
Count = Annotated[int, Field(strict=True, ge=0)]


def compared() -> tuple[str, ...]:
    """Return the names of all protocols by which ids can be compared here."""
    return (*COMPARED, *sorted({entry.name for entry in entry_points(group=PSI)} - {*COMPARED, "auto"}))


def _compared(name: str) -> str:
    if name not in compared():
        raise fault(f"should be one of {', '.join(compared())}{nearest(name, compared())}")
    return name


Compared = Annotated[str, AfterValidator(_compared)]


class Bound(Section):
    """The values that a parameter may have. A list is within a bound if each of its elements is."""

    min: Annotated[float, Field(allow_inf_nan=False)] | None = None
    max: Annotated[float, Field(allow_inf_nan=False)] | None = None
    values: tuple[StrictBool | StrictInt | StrictFloat | str, ...] | None = None  # one of these

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min is None and self.max is None and self.values is None:
            raise fault("says nothing; give min, max or values")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise fault(f"has min {self.min:g} above max {self.max:g}")
        return self

    def holds(self, value: object) -> bool:
        """Return whether `value` (JSON) is within this bound. NaN, and what cannot be compared, is not."""
        if isinstance(value, Sequence) and not isinstance(value, str):
            return all(self.holds(element) for element in value)
        if self.values is not None and not any(_same(value, one) for one in self.values):
            return False
        if self.min is None and self.max is None:
            return True
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def __str__(self) -> str:
        said = []
        if self.min is not None:
            said.append(f"at least {self.min:g}")
        if self.max is not None:
            said.append(f"at most {self.max:g}")
        if self.values is not None:
            said.append(f"one of {', '.join(map(repr, self.values))}")
        return " and ".join(said)


class Rule(Section):
    """What some peers may do with some tables. Counts are of rows, jobs or ids; 0 of a `max_` is no limit."""

    peers: Annotated[Names, Field(min_length=1)]  # names in the book, or "*": every party in it
    tables: Names = (ANY,)
    methods: Names = ()  # as registered, or "*"; a rule without any decides nothing
    actions: tuple[Action, ...] = ()
    columns: Names = ()  # that jobs may use, or "*"
    show_columns: StrictBool = False  # may the peer be told what the columns are called, and name them
    protocols: tuple[Compared, ...] = ("ecdh",)  # by which ids may be compared
    consent: Consent = "ask"  # for fit and align
    consent_predict: Consent = "ask"
    consent_hours: Count = 24  # for which a person's consent to a job holds
    consent_attempts: Annotated[int, Field(strict=True, ge=1)] = 5  # at the job under it, in all
    min_intersection: Count = 100  # matched rows
    min_group: Count = 10  # rows behind any released statistic
    allow_plain: StrictBool = False  # embeddings, gradients or updates in the clear
    max_predictions: Count = 100  # predict jobs, in all
    max_distinct_ids: Count = 10_000  # ids that were ever predicted for one peer
    max_asked_job: Count = (
        2_000_000  # ids that the peer asks about in all attempts at a job; all that it announces
    )
    max_asked_day: Count = 10_000_000  # in any 24 hours
    max_asked: Count = 100_000_000  # in all; each time counts, so of distinct ids it is at most so many
    max_fits: Count = 100  # distinct sets of rows that models are fitted on, in all
    min_difference: Count = 10  # rows by which a training set differs from each earlier one, unless equal
    expires: date | None = None  # nothing is granted from the beginning of this day (UTC) on
    parameters: dict[str, dict[str, Bound]] = Field(default_factory=dict)  # method or "*" -> parameter

    @model_validator(mode="after")
    def _stars_alone(self) -> Self:
        for key in ("peers", "tables", "methods", "columns"):
            names: Names = getattr(self, key)
            if any(ANY in name and name != ANY for name in names) or (ANY in names and len(names) > 1):
                raise fault(f'{key} should be names, or ["*"] alone; patterns and mixtures are not read')
            if len(set(names)) < len(names):
                raise fault(f"{key} names one of them twice")
        return self

    def covers(self, peer: str, table: str, method: str) -> bool:
        """Return whether this rule is about jobs of `peer` with `method` on `table`."""
        asked = ((self.peers, peer), (self.tables, table), (self.methods, method))
        return all(has(names, name) for names, name in asked)

    def bounds(self, method: str, careful: Mapping[str, Bound]) -> dict[str, Bound]:
        """The bounds of a method's parameters: its program's `careful` ones, over them those of "*", and over
        these its own."""
        return {**careful, **self.parameters.get(ANY, {}), **self.parameters.get(method, {})}

    def lets(self, protocol: str) -> bool:
        """Return whether `protocol` may compare ids; "auto" is an allowed one, chosen by their numbers."""
        return protocol in self.protocols or (
            protocol == "auto" and bool({"ecdh", "kkrt"} & {*self.protocols})
        )


def _same(value: object, one: object) -> bool:
    return value == one and isinstance(value, bool) == isinstance(one, bool)  # True is not 1


def has(names: Iterable[str], name: str) -> bool:
    """Return whether a list of names grants `name`. A job cannot name "*"."""
    return name != ANY and any(known in (name, ANY) for known in names)
