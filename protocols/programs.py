"""Programs: what a job may ask a party to run, by name. No code crosses the wire.

A package registers its programs as entry points of the group `vfl.programs`. A program is how one method
turns parameters that all parties see, and a seat that one party has for itself, into that party's role. The
same program serves a run in one process, where the caller fills every seat, and a run between processes,
where each party fills its own: a caller never needs another party's column names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from protocols.arrays import Array
from protocols.data.sources import fingerprint
from protocols.data.tables import check_classes, check_numbers, check_rows, column, labels
from protocols.errors import ConfigError, nearest
from protocols.logs import log
from protocols.parts import Part
from protocols.party import Role
from protocols.policy.rules import Bound
from protocols.psi.id_columns import IdColumn
from protocols.settings import plain
from protocols.wire.message import Message
from protocols.wire.reveals import fields, load_messages

GROUP = "vfl.programs"


class Parameters(BaseModel):
    """What the caller sets for a method, visible to every party. Subclass it for each method."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True)
class Seat:
    """One party's own place in a job. None of it is told to anybody."""

    party: str
    parties: tuple[str, ...]  # all that take part, in roster order
    table: pd.DataFrame | None = field(default=None, repr=False)  # None: this party has no data
    id: str | tuple[str, ...] | None = None  # its id column, or several that make an id together
    target: str | None = None  # its target column, where it has one
    sample_weight: Array | None = field(
        default=None, repr=False
    )  # float64 (rows of its table,), beside a target
    # For predicting, and for training that starts from an earlier one: what it kept from that.
    kept: Any = field(default=None, repr=False)
    monotone: Mapping[str, int] = field(default_factory=dict, repr=False)  # column -> 1 up, -1 down
    ids: IdColumn | None = field(default=None, repr=False)  # in place of a table, where ids are all it takes
    scratch: Path | None = None  # where there is place for what a run needs while it lasts
    modules: Mapping[str, nn.Module] = field(default_factory=dict, repr=False)  # brought; in one process only
    store: Path | None = None  # its own folder, for what a method keeps from one run to the next
    job: str = ""  # over a network, once there is a result to keep: the same in all attempts

    @property
    def one_id(self) -> str | None:
        """The id column of a method whose ids have one. ConfigError where it has several."""
        if isinstance(self.id, tuple):
            error = ConfigError(
                f"the id has {len(self.id)} columns, expected one: ids of several are for align alone; join "
                "them into one column"
            )
            error.told = str(error)  # a count, and no name of a column
            raise error
        return self.id

    def require_table(self) -> pd.DataFrame:
        """Return the seat's table. Raises ConfigError where it has none."""
        if self.table is None:
            raise ConfigError("has no table; every party of this method brings columns or the target")
        return self.table

    def require_id(self) -> str:
        """Return the seat's one id column. Raises ConfigError where none is named, or several are."""
        if self.one_id is None:
            raise ConfigError("no id column is named; rows of this method are matched by their ids")
        return self.one_id

    def require_target(self, *, classes: bool) -> pd.Series:
        """The values of its target column, of classes or of numbers.

        ConfigError where none is named or it is the id, DataError for values that cannot be learnt.
        """
        if self.target is None:
            raise ConfigError("no target column is named at the label party")
        if self.target == self.one_id:
            raise ConfigError(f"column {self.target!r} is both id and target; choose another id column")
        table = self.require_table()
        y = column(table, self.target, "target")
        check_rows(table)
        if classes:
            check_classes(labels(y))
        else:
            check_numbers(y)
        return y

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the table or ids, and of what the seat brings; "" if none."""
        if self.table is None:
            return "" if self.ids is None else self.ids.fingerprint
        said = hashlib.sha256(fingerprint(self.table).encode())
        said.update(b"" if self.sample_weight is None else self.sample_weight.tobytes())
        said.update(repr(sorted(self.monotone.items())).encode())
        return said.hexdigest()


Prepare = Callable[[P, Seat], Role]


def everybody(parameters: Parameters, others: tuple[str, ...]) -> tuple[str, ...]:
    """Return all others: by default, `Program.learners` says that all of them learn of a party's rows."""
    return others


@dataclass(frozen=True)
class Program(Generic[P]):
    """A method that parties can run together.

    speaks: action -> the kinds of messages that its roles send, all of them: what a person consents to.
    prepare: action -> a function that checks a seat and gives the role; it raises ConfigError or DataError
        before any line opens. keep: what `fit`'s role returned -> the party's part. recall: a part -> what
        `kept` of the seat is when predicting. plain: whether embeddings, gradients or updates leave in the
        clear. ids_only: whether ids are all that its roles look at of a table. learners: those of a party's
        `others` who learn of its rows, and need a grant. careful: bounds of the parameters by which a caller
        could widen what others show; they hold unless a rule of a party's policy has a bound of its own.
    """

    name: str
    package: str  # whose messages it speaks, besides those of `protocols`
    parameters: type[P]
    speaks: Mapping[str, tuple[type[Message], ...]]
    prepare: Mapping[str, Prepare[P]]
    keep: Callable[[P, Seat, Any], Part]
    recall: Callable[[P, Part], Any]
    plain: bool = True
    ids_only: bool = False
    target: Callable[[P], str] | None = None  # the column that parameters name, where all tables have it
    learners: Callable[[P, tuple[str, ...]], tuple[str, ...]] = everybody
    careful: Mapping[str, Bound] = field(default_factory=dict)

    def read(self, parameters: Mapping[str, Any]) -> P:
        """Read parameters as they came over the wire. Raises ConfigError naming those that do not fit."""
        try:
            return self.parameters.model_validate(plain(dict(parameters)))
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)[:3]
            known = list(self.parameters.model_fields)
            # A rule about several parameters names them in its words, and has no place of its own.
            said = [
                ": ".join(
                    filter(None, (".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")))
                )
                for e in found
            ]
            said += [nearest(str(e["loc"][0]), known)[2:] for e in found if e["type"] == "extra_forbidden"]
            raise ConfigError(f"{self.name}: {'; '.join(said)}") from None

    def role(self, action: str, parameters: P, seat: Seat) -> Role:
        """Check `seat` and return its role in `action`."""
        if action not in self.prepare:
            raise ConfigError(f"{self.name} has no action {action!r}; it has {', '.join(self.prepare)}")
        return self.prepare[action](parameters, seat)

    def schemas(self) -> str:
        """Return a digest (64 hex digits) of the program's messages, equal at parties that can talk."""
        return _schemas(self.package)


def program(name: str) -> Program[Any]:
    """The registered program `name`; ConfigError if there is none."""
    found = registered()
    if name not in found:
        raise ConfigError(
            f"no method {name!r} is registered here; there are {', '.join(found)}{nearest(name, found)}"
        )
    loaded: Program[Any] = found[name].load()
    return loaded


def load_all() -> None:
    """Import every program that can be imported. A serving party does so before anybody waits for it."""
    for name in registered():
        try:
            program(name).schemas()
        except Exception as error:  # whatever its package raises; a job that names it will say so too
            log.warning("request failed", extra={"method": name}, exc_info=error)


@cache
def registered() -> Mapping[str, EntryPoint]:
    """Return the names of all programs, and where each is found."""
    # Not loaded: one package that does not import would be in the way of all others' programs.
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name)}


def import_all() -> None:
    """Import every program, and what the first optimizer brings, before anybody waits for it.

    A program that cannot be imported does no harm until somebody asks for it.
    """
    for entry in registered().values():
        with suppress(Exception):
            entry.load()
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # imports torch._dynamo, which takes seconds


@cache
def _schemas(package: str) -> str:
    return hashlib.sha256("\n".join(told(package)).encode()).hexdigest()


def told(package: str) -> list[str]:
    """The kind and fields of every message that `package`'s programs speak, in words. A type's own repr is no
    word of ours: it changes with the release of Python, numpy or pydantic."""
    load_messages(("protocols", package))
    ours = ("protocols.", f"{package}.")
    spoken = [kind for kind, cls in Message.kinds.items() if f"{cls.__module__}.".startswith(ours)]
    return [f"{kind}|{fields(Message.kinds[kind])}" for kind in sorted(spoken)]
