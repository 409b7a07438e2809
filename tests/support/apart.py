"""One party's view of a federation whose others are elsewhere: each fills its own seat, as over a network.

Everybody runs in this process all the same; parameters cross as JSON, and each party keeps its own part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from protocols.errors import marked
from protocols.federation import Federation, simulate
from protocols.parts import Part
from protocols.party import Role, Run
from protocols.policy.rules import Action
from protocols.programs import Program, Seat, program
from protocols.progress import Report

Kept = dict[str, Part]


class Apart(Federation):
    """What the party `me` sees of `tables`, in which the others have the id columns `ids`.

    kept: every party's part of the training, once there was one.
    """

    def __init__(
        self,
        me: str,
        parties: Sequence[str],
        tables: Mapping[str, pd.DataFrame],
        ids: Mapping[str, str] | None = None,
        kept: Kept | None = None,
    ) -> None:
        super().__init__(tables)
        self.me, self.ids = me, ids or {}
        self._parties, self.kept = tuple(parties), {} if kept is None else kept

    @property
    def parties(self) -> tuple[str, ...]:
        return self._parties

    @property
    def here(self) -> tuple[str, ...]:
        return (self.me,) if self.me in self._tables else ()

    def __getitem__(self, party: str) -> pd.DataFrame:
        assert party == self.me, "a caller asks for another party's table"
        return super().__getitem__(party)

    def execute(
        self,
        program: Program[Any],
        action: Action,
        parameters: Any,
        seat: Callable[[str], Seat],
        parties: Sequence[str],
        *,
        seed: int = 0,
        on_progress: Report | None = None,
        run: str = "",
    ) -> Run:
        seats = {party: self._seat(party, parties) for party in parties} | {self.me: seat(self.me)}
        roles: dict[str, Role] = {}
        for party, own in seats.items():
            with marked(party, action):
                roles[party] = self._role(party, action, parameters, own, program.name)
        played = simulate(roles, seed=seed)
        if action == "fit":
            self.kept |= {p: program.keep(parameters, seats[p], played.results[p]) for p in parties}
        return Run({self.me: played.results[self.me]}, played.ledger, played.seconds)

    def _seat(self, party: str, parties: Sequence[str]) -> Seat:
        return Seat(party, tuple(parties), self._tables.get(party), self.ids.get(party))

    def _role(self, party: str, action: str, parameters: Any, own: Seat, name: str) -> Role:
        there = program(name)
        told = there.read(json.loads(parameters.model_dump_json()))
        if party != self.me and action == "predict":
            own = Seat(party, own.parties, own.table, own.id, kept=there.recall(told, self.kept[party]))
        return there.role(action, told, own)
