"""The laws: each is a function of a case and an empty folder, and raises AssertionError with words.

They look at a program as its peers and their owners do: what leaves was declared, a run can be repeated, what
cannot be meant is refused before a line opens, and neither the network nor a crash changes a bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from protocols.errors import VflError
from protocols.federation import Federation
from protocols.parts import load_part
from protocols.programs import program, told
from protocols.record.reconcile import verify
from protocols.service import store
from protocols.testing import resuming
from protocols.testing.case import Case, Outcome, Played
from protocols.testing.mortal import Mortal
from protocols.testing.served import HANG, lay_out, serving


def says_what_leaves(case: Case, folder: Path) -> None:
    """Every message is among those that the program declares, and says in words what it reveals."""
    for played in _played(case):
        own = played.program
        assert program(own.name) is own, f"{own.name} is registered as another program"
        declared = {kind.kind: kind for kind in own.speaks.get(played.action, ())}
        sent = {entry.kind for entry in played.run.ledger}
        undeclared = sorted(sent - {*declared})
        assert not undeclared, (
            f"{own.name} sends {', '.join(undeclared)} in {played.action!r}, which its `speaks` does not say"
        )
        known = {line.partition("|")[0] for line in told(own.package)}
        for name, kind in declared.items():
            assert len(kind.reveals.split()) >= 3, f"{name} should say in words what it reveals"
            assert name in known, f"{name} is a message of neither {own.package} nor protocols"


def repeats(case: Case, folder: Path) -> None:
    """The same seed gives the same, and nothing is drawn from a generator that all of a process share."""
    first = _alone(case)
    before = _shared_state()
    second = _alone(case)
    assert _shared_state() == before, (
        "it draws from, or sets, the generator of `random`, numpy or torch that a whole process shares: use "
        "me.rng()"
    )
    first.check(second)


def refuses(case: Case, folder: Path) -> None:
    """Parameters survive JSON; an unknown one, and each of `case.wrong`, is refused before any line opens."""
    for played in _played(case):
        own = played.program
        said = played.parameters.model_dump(mode="json")
        assert own.read(said) == played.parameters, "parameters are not the same after JSON"
        refused = _refusal(replace(played, given={**said, "no_such_parameter": 1}).roles)
        assert "no_such_parameter" in refused, "a parameter that there is not is taken, or not named"
        for wrong in case.wrong:
            changed = replace(played, given={**said, **wrong})
            assert _refusal(changed.roles), f"{own.name} takes {dict(wrong)} in {played.action!r}"


def resumes(case: Case, folder: Path) -> None:
    """A run that is started again after any step, from what its parties kept, ends with the same bits."""
    for played in _played(case):
        if played.action != "predict":
            resuming.check(lambda played=played: (played.roles(), played.seed))  # type: ignore[misc]


def is_the_same_over_a_network(case: Case, folder: Path) -> None:
    """A run between serving parties gives one process's bits, each keeps its part, and ledgers agree."""
    here, played = case.recorded()
    there = _over_network(case, folder)
    here.check(there)
    trained = next(one for one in played if one.action != "predict")
    for party, seat in trained.seats.items():
        if party not in trained.run.results:
            continue
        expected = trained.program.keep(trained.parameters, seat, trained.run.results[party])
        found = load_part(folder / f"{party}-store" / "parts", there.run)
        assert sorted(found.weights) == sorted(expected.weights), f"{party} keeps other arrays"
        for name in expected.weights:
            np.testing.assert_array_equal(found.weights[name], expected.weights[name], f"{party}: {name}")
        assert {*found.settings} == {*expected.settings}, f"{party} keeps other settings"
    _check_ledgers(case, folder)


def survives_a_kill(case: Case, folder: Path) -> None:
    """A party that is killed as by `kill -9` once it has kept a step, and starts again, changes no bit."""
    victim = case.served[0]
    lay_out(folder, case.tables(), case.policy)
    with Mortal(folder / f"{victim}.toml", case.seed) as mortal:
        there = _call(case, folder, [party for party in case.served if party != victim])
        assert mortal.deaths == 1, f"{victim} died {mortal.deaths} times, expected once"
    case.here().check(there)
    _check_ledgers(case, folder)


Law = Callable[[Case, Path], None]
LAWS: tuple[Law, ...] = (
    says_what_leaves,
    repeats,
    refuses,
    resumes,
    is_the_same_over_a_network,
    survives_a_kill,
)


def _refusal(work: Callable[[], object]) -> str:
    """Return the words with which `work` refuses; "" where it does not."""
    try:
        work()
    except VflError as error:
        return str(error)
    return ""


def _played(case: Case) -> list[Played]:
    with _one_thread():
        _, played = case.recorded()
    assert played, "the case's play should run a program over the federation that it is given"
    return played


def _alone(case: Case) -> Outcome:
    with _one_thread():
        return case.here()


def _shared_state() -> tuple[str, ...]:
    return repr(random.getstate()), repr(np.random.get_state()), repr(torch.get_rng_state().tolist())


def _over_network(case: Case, folder: Path) -> Outcome:
    lay_out(folder, case.tables(), case.policy)
    return _call(case, folder, case.served)


def _call(case: Case, folder: Path, served: list[str]) -> Outcome:
    own = case.tables()[case.caller]
    # Over a network nobody is told a seed, and here all parties must have the one of the run in one process.
    with (
        mock.patch.object(store, "new_seed", return_value=case.seed),
        _one_thread(),
        serving(folder, *served),
        Federation.connect(folder / "parties.toml", case.caller, own, patience=HANG) as parties,
    ):
        return case.play(parties)


def _check_ledgers(case: Case, folder: Path) -> None:
    for pair in combinations(case.tables(), 2):
        verdict = verify(*(folder / f"{party}-store" / "ledger.jsonl" for party in pair))
        assert verdict.agree, f"the ledgers of {' and '.join(pair)} differ: {verdict.asdict()}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread, since it adds up in another order with another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
