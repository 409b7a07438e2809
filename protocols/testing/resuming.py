"""A run that starts again from what its parties kept after any step, in one process and without a disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from protocols.arrays import Arrays
from protocols.federation import simulate
from protocols.party import Coordinator, Role, Run
from protocols.testing.results import fingerprint

Roles = Mapping[str, Role]
Make = Callable[[], tuple[Roles, int]]  # roles anew, as a process that starts has them, and all parties' seed


@dataclass
class Memory:
    """One party's checkpoints, and the step that all agreed to go on from."""

    done: int = 0
    states: dict[int, Arrays] = field(default_factory=dict)
    aligned: Arrays | None = None

    def latest(self) -> tuple[int, Arrays | None]:
        return self.done, self.states.get(self.done)

    def save(self, done: int, state: Arrays) -> None:
        assert done > self.done, "a step that was done already"
        self.states[done] = state

    def alignment(self) -> Arrays | None:
        return self.aligned

    def save_alignment(self, state: Arrays) -> None:
        assert self.aligned is None, "ids were compared that had been before"
        self.aligned = state


def play(make: Make, kept: Mapping[str, Memory]) -> Run:
    """Run the roles, each with its own checkpoints."""
    roles, seed = make()

    def keeping(role: Role, memory: Memory) -> Role:
        async def kept_role(me: Coordinator) -> Any:
            me.desk.checkpoints = memory
            return await role(me)

        return kept_role

    return simulate({name: keeping(role, kept[name]) for name, role in roles.items()}, seed=seed)


def prints(run: Run) -> dict[str, str]:
    """A hash of each party's result."""
    return {name: fingerprint(result) for name, result in run.results.items()}


def check(make: Make, steps: int | None = None) -> None:
    """AssertionError unless the run can start again after every step, and ends the same.

    steps: how many there must be; None: any number, the same at all parties.
    """
    roles, seed = make()
    expected = prints(simulate(roles, seed=seed))
    kept = {name: Memory() for name in roles}
    assert prints(play(make, kept)) == expected, "a run that keeps checkpoints ends otherwise"
    if steps is None:
        steps = len(next(iter(kept.values())).states)
    for name, memory in kept.items():
        assert sorted(memory.states) == list(range(1, steps + 1)), f"{name} kept {sorted(memory.states)}"
    for done in range(steps + 1):
        again = {name: Memory(done, dict(memory.states), memory.aligned) for name, memory in kept.items()}
        rest = play(make, again)
        assert prints(rest) == expected, f"started again after {done} of {steps} steps it ends otherwise"
        # Steps that were done are not done again, and those that were not are.
        scopes = {entry.scope.split("/")[1] for entry in rest.ledger if entry.scope.startswith("fit/")}
        assert not steps or scopes == {str(step) for step in range(done, steps)}
        aligned = [entry for entry in rest.ledger if entry.scope.startswith("align")]
        assert not aligned or kept[next(iter(kept))].aligned is None, "ids are compared again"
        assert {name: m.states for name, m in again.items()} == {name: m.states for name, m in kept.items()}
