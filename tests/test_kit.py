"""The cases that a program must pass, for our own and for a foreign one, which they hold or fail."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from protocols import programs
from protocols.testing import LAWS, Case
from protocols.testing.laws import Law, repeats, says_what_leaves
from tests.support import ROOT
from tests.support.networked import CASES

PROGRAM = '''
"""Two parties: the caller learns the sum of the other's column, times the rounds."""
import random
from typing import Annotated
import numpy as np
from pydantic import Field
from protocols import Arrays, Message, Parameters, Program
from protocols.parts import Part

class Total(Message, reveals="the sum of one of its columns"):
    value: float

class Secret(Message, reveals="a number that nobody asked for"):
    value: float

class Sums(Parameters):
    column: str
    rounds: Annotated[int, Field(ge=1)] = 2
    noise: bool = False
    talks: bool = False

class State:
    def __init__(self): self.total = 0.0
    def snapshot(self): return Arrays({"total": np.array([self.total])})
    def restore(self, state): self.total = float(state["total"][0])

def fit(p, seat):
    caller, other = seat.parties
    async def role(me):
        state = State()
        for step in me.steps(p.rounds, state):
            async with step as at:
                if seat.party == caller:
                    state.total += (await at.recv(other, Total)).value
                    if p.talks:
                        await at.recv(other, Secret)
                else:
                    value = float(seat.table[p.column].sum())
                    value += random.random() if p.noise else 0.0
                    await at.send(caller, Total(value=value + at.rng().normal()))
                    if p.talks:
                        await at.send(caller, Secret(value=1.0))
        return state.total
    return role

def keep(p, seat, result):
    return Part("acme-sums", seat.party, p.model_dump(mode="json"), Arrays({"total": np.array([result])}))

program = Program("acme-sums", "acme", Sums, {"fit": (Total,)}, {"fit": fit}, keep,
                  lambda p, part: part.weights)
'''
TESTS = """import pandas as pd
import pytest
from protocols.testing import LAWS, Case

TABLES = {
    "bank": pd.DataFrame({"id": range(9), "y": range(9)}),
    "shop": pd.DataFrame({"id": range(9), "spent": [0.1 * i for i in range(9)]}),
}
WRONG = [{"rounds": 0}, {"column": 3}]
CASE = Case.of("acme-sums", {"column": "spent"}, TABLES, wrong=WRONG)


@pytest.mark.parametrize("law", LAWS)
def test_a_law(law, tmp_path):
    law(CASE, tmp_path)
"""


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package as pip would install it, and the module of its tests."""
    written(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    programs.registered.cache_clear()
    yield importlib.import_module("test_acme")
    programs.registered.cache_clear()
    programs._schemas.cache_clear()
    for name in ("acme", "test_acme"):
        sys.modules.pop(name, None)


def written(folder: Path) -> None:
    (folder / "acme").mkdir()
    (folder / "acme/__init__.py").write_text(PROGRAM)
    (folder / "test_acme.py").write_text(TESTS)
    about = folder / "acme-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[vfl.programs]\nacme-sums = acme:program\n")


def test_a_foreign_program_is_held_to_all_of_it_in_less_than_twenty_lines(tmp_path: Path) -> None:
    """As its author would: another project's folder, and pytest."""
    assert len(TESTS.strip().splitlines()) < 20
    written(tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    ours = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"],
        cwd=tmp_path,
        env=ours,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(LAWS)} passed" in done.stdout


@pytest.mark.parametrize(
    ("parameters", "law", "words"),
    [
        ({"noise": True}, repeats, "a whole process shares"),
        (
            {"talks": True},
            says_what_leaves,
            r"acme-sums sends acme\.Secret/1 in 'fit', which its `speaks` does not",
        ),
    ],
)
def test_a_broken_program_is_told_what_it_breaks(
    acme: ModuleType, tmp_path: Path, parameters: dict[str, bool], law: Law, words: str
) -> None:
    case = Case.of("acme-sums", {"column": "spent", **parameters}, acme.TABLES)
    with pytest.raises(AssertionError, match=words):
        law(case, tmp_path)


def test_parameters_that_are_taken_and_should_not_be_are_told(acme: ModuleType, tmp_path: Path) -> None:
    refuses = next(law for law in LAWS if law.__name__ == "refuses")
    case = Case.of("acme-sums", {"column": "spent"}, acme.TABLES, wrong=[{"rounds": 7}])
    with pytest.raises(AssertionError, match=r"takes \{'rounds': 7\}"):
        refuses(case, tmp_path)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", CASES)
def test_our_own_programs_hold_it_all(name: str, law: Law, tmp_path: Path) -> None:
    law(CASES[name], tmp_path)
