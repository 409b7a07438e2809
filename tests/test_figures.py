"""What the long tests find survives an interruption, and failures are counted as such and done again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import figures
from tests.support.figures import SAME, left, noted, read, tables


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    file = tmp_path / "new" / "figures.jsonl"
    monkeypatch.setenv("VFL_FIGURES", str(file))
    figures._before.cache_clear()
    yield file
    figures._before.cache_clear()


def kill(number: int) -> dict[str, object]:
    return {"test": "kill", "program": "fedavg", "party": "north", "kill": number}


def test_an_interrupted_run_goes_on_where_it_ended(file: Path) -> None:
    with noted(**kill(0)) as found:
        found |= {"outcome": SAME, "deaths": 1, "seconds": 2.0, "recovery": 1.5}
    with pytest.raises(AssertionError, match="other bits"), noted(**kill(1)):
        raise AssertionError("other bits")
    with file.open("a") as out:
        out.write('{"test": "kill", "prog')
    with noted(**kill(2)) as found:
        found |= {"outcome": SAME, "deaths": 2, "seconds": 3.0, "recovery": 2.5}
    figures._before.cache_clear()
    assert [left(**kill(number)) for number in range(4)] == [False, True, False, True]
    assert len(read(file)) == 3
    assert "| fedavg | 3 | 3 | 2 | 2.0 | 2.5 |" in tables(read(file))


def test_the_tables_of_plans_and_soaks() -> None:
    plans = [{"test": "plan", "program": "align", "seed": seed, "seconds": 1.0 + seed} for seed in range(3)]
    outcomes = [SAME, "error", "AssertionError: 1 != 2"]
    said = tables([{**plan, "outcome": outcome} for plan, outcome in zip(plans, outcomes, strict=True)])
    assert "| align | 3 | 1 | 1 | 1 | 2.0 | 3.0 |" in said
    soak = {"test": "soak", "program": "align", "party": "bank", "outcome": ""}
    stretches = [{**soak, "jobs": n, "bytes": 10**8 + 50 * n, "files": 30} for n in (200, 100, 300)]
    assert "| align | bank | 300 | 100 to 100 | 50 | 30 to 30 |" in tables(stretches)


def test_without_a_file_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VFL_FIGURES", raising=False)
    monkeypatch.chdir(tmp_path)
    with noted(**kill(0)) as found:
        found["outcome"] = SAME
    assert left(**kill(0)) and not list(tmp_path.iterdir())


def test_so_many_are_run_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VFL_SHARE", raising=False)
    assert figures.many(50) == 50
    monkeypatch.setenv("VFL_SHARE", "0.05")
    assert figures.many(50) == 3 and figures.many(1) == 1
