"""A case: who holds what, and a short run to repeat, in one process and between several."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from protocols.arrays import Array
from protocols.errors import ConfigError
from protocols.federation import Federation
from protocols.parts import load_part
from protocols.party import Role, Run
from protocols.policy.rules import Action
from protocols.programs import Parameters, Program, Seat, program
from protocols.service.caller import Connected
from protocols.testing.results import fingerprint

Tables = Mapping[str, pd.DataFrame | None]
POLICY = "min_intersection = 5\nmin_group = 3\nmax_predictions = 0\n"  # 0: any number


@dataclass(frozen=True)
class Outcome:
    """The result that a run must give, bit for bit, however it is disturbed. run: the parts' run id."""

    run: str
    arrays: Mapping[str, Array]

    def check(self, other: Outcome) -> None:
        """AssertionError unless `other` gives the same."""
        assert list(self.arrays) == list(other.arrays), f"{[*other.arrays]} came, expected {[*self.arrays]}"
        for name, array in self.arrays.items():
            np.testing.assert_array_equal(other.arrays[name], array, f"{name} is not the same")


@dataclass(frozen=True)
class Played:
    """One action of a program as it was run in one process."""

    program: Program[Any]
    action: Action
    parameters: Parameters
    seats: Mapping[str, Seat]
    seed: int
    run: Run
    given: Mapping[str, Any] | None = None  # other parameters, as they come over the wire

    def roles(self) -> dict[str, Role]:
        """Make the roles anew, as processes that have just started have them."""
        parameters = self.parameters if self.given is None else self.program.read(self.given)
        return {
            party: self.program.role(self.action, parameters, copy.copy(seat))
            for party, seat in self.seats.items()
        }


class Recorded(Federation):
    """A federation in one process that remembers what it ran."""

    def __init__(self, tables: Mapping[str, pd.DataFrame]) -> None:
        super().__init__(tables)
        self.played: list[Played] = []

    def execute(
        self,
        program: Program[Any],
        action: Action,
        parameters: Any,
        seat: Callable[[str], Seat],
        parties: Sequence[str],
        **how: Any,
    ) -> Run:
        """Run an action as any federation does, and remember it."""
        seats = {party: seat(party) for party in parties}
        run = super().execute(program, action, parameters, seats.__getitem__, parties, **how)
        self.played.append(Played(program, action, parameters, seats, how.get("seed", 0), run))
        return run


@dataclass(frozen=True)
class Case:
    """A run to repeat.

    caller: who calls; the other parties serve. tables: makes each party's table, None for one without; ids
    are in the column "id". play: runs the program over the federation that it is given, and says what came.
    wrong: changes to its parameters that must be refused. seed: of all parties, here and over the
    network. policy: what every party's rule says besides, as TOML.
    """

    caller: str
    tables: Callable[[], Tables]
    play: Callable[[Any], Outcome]
    wrong: Sequence[Mapping[str, Any]] = ()
    seed: int = 1
    policy: str = POLICY

    @classmethod
    def of(
        cls,
        name: str,
        parameters: Mapping[str, Any],
        tables: Tables,
        *,
        caller: str = "",
        id: str | None = "id",
        target: str | None = None,
        wrong: Sequence[Mapping[str, Any]] = (),
        policy: str = POLICY,
    ) -> Self:
        """The registered program `name`, with these parameters: trained, and predicted with if it can be.

        caller: by default the first party. id: everybody's id column. target: the caller's column of labels.
        """
        caller = caller or next(iter(tables))
        play = _Plays(name, parameters, tuple(tables), caller, id, target, cls.seed)
        return cls(caller, lambda: tables, play, wrong, policy=policy)

    @property
    def served(self) -> list[str]:
        """All parties but the caller."""
        return [party for party in self.tables() if party != self.caller]

    def here(self) -> Outcome:
        """The outcome in this process, undisturbed."""
        return self.recorded()[0]

    def recorded(self) -> tuple[Outcome, list[Played]]:
        """The outcome in this process, with every action that was run."""
        federation = Recorded({party: own for party, own in self.tables().items() if own is not None})
        return self.play(federation), federation.played


@dataclass(frozen=True)
class _Plays:
    name: str
    parameters: Mapping[str, Any]
    parties: tuple[str, ...]
    caller: str
    id: str | None
    target: str | None
    seed: int

    def __call__(self, data: Federation | Connected) -> Outcome:
        found = program(self.name)
        p = found.read(self.parameters)
        kept: dict[str, Any] = {}

        def seat(party: str) -> Seat:
            table = data.get(party)
            named = found.target(p) if found.target is not None and table is not None else None
            target = named or (self.target if party == self.caller else None)
            return Seat(party, self.parties, table, self.id, target, kept=kept.get(party))

        first, *more = found.prepare
        trained = data.execute(found, _action(first), p, seat, self.parties, seed=self.seed)
        parts = {party: found.keep(p, seat(party), result) for party, result in trained.results.items()}
        own = parts[self.caller]
        arrays = {f"part: {name}": np.asarray(own.weights[name]) for name in sorted(own.weights)}
        if "predict" in more:
            kept |= {party: found.recall(p, part) for party, part in parts.items()}
            if isinstance(data, Connected):
                kept[self.caller] = found.recall(p, load_part(data.store.parts, trained.job))
            asked = data.execute(found, "predict", p, seat, self.parties, seed=self.seed, run=trained.job)
            arrays["predicted"] = np.array(fingerprint(asked.results[self.caller]))
        return Outcome(trained.job, arrays)


def _action(name: str) -> Action:
    if name == "fit":
        return "fit"
    if name == "align":
        return "align"
    raise ConfigError(f'the first action of a program should be "fit" or "align", got {name!r}')
