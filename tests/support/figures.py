"""What the long tests find, one line of JSON for each kill, plan and stretch of a soak, and the tables of it.

    make test-long                                          # to a new file in .figures/
    make test-long FIGURES=.figures/20260301T123000.jsonl   # the rest of a run that was interrupted
    python -m tests.support.figures .figures/*.jsonl                # the tables of docs/benchmarks/faults.md

The file is `VFL_FIGURES`; without it nothing is written. `VFL_SHARE=0.1` runs a tenth of each long test.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

Figure = dict[str, Any]
SAME = "same bits"


def many(full: int) -> int:
    """So many, or the share of them that was asked for, and one at least."""
    return max(1, math.ceil(full * float(os.environ.get("VFL_SHARE", "1"))))


def read(*files: Path) -> list[Figure]:
    """All lines that are whole."""
    found = []
    for file in files:
        for line in file.read_text().splitlines() if file.exists() else ():
            with suppress(json.JSONDecodeError):  # a process was killed as it wrote
                found.append(json.loads(line))
    return found


@contextmanager
def noted(**about: Any) -> Iterator[Figure]:
    """Fill in what was found of `about`; it is written down at the end, the error too where there is one."""
    found: Figure = {}
    try:
        yield found
    except BaseException as error:
        found["outcome"] = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise
    finally:
        if file := _file():
            file.parent.mkdir(exist_ok=True)
            with file.open(
                "a"
            ) as out:  # in one write, as several processes append, and maybe after a torn line
                out.write(f"\n{json.dumps({**about, **found})}\n")


def left(**about: Any) -> bool:
    """Whether nobody has noted yet what is to be found of `about`."""
    return not any(about.items() <= figure.items() for figure in _before())


@cache
def _before() -> list[Figure]:
    """What an earlier run has noted. What failed is to be done again."""
    file = _file()
    return [figure for figure in read(file) if ": " not in figure["outcome"]] if file else []


def _file() -> Path | None:
    setting = os.environ.get("VFL_FIGURES")
    return Path(setting) if setting else None


# The tables.


def tables(figures: Iterable[Figure]) -> str:
    """The tables of all figures, in Markdown."""
    by: dict[str, dict[str, list[Figure]]] = {"kill": {}, "plan": {}, "soak": {}}
    for figure in figures:
        by[figure["test"]].setdefault(figure["program"], []).append(figure)
    return "\n".join([*_kills(by["kill"]), *_plans(by["plan"]), *_soaks(by["soak"])])


def _kills(found: Mapping[str, list[Figure]]) -> Iterator[str]:
    yield from _head("program", "kills", "jobs", "same bits", "median recovery, s", "longest, s")
    for program, jobs in sorted(found.items()):
        times = [job["recovery"] for job in jobs if job.get("recovery") is not None]
        same = sum(job["outcome"] == SAME for job in jobs)
        kills = sum(job.get("deaths", 0) for job in jobs)
        yield _row(program, kills, len(jobs), same, *_times(times))


def _plans(found: Mapping[str, list[Figure]]) -> Iterator[str]:
    yield from _head("program", "plans", "repaired", "one clear error", "else", "median, s", "longest, s")
    for program, plans in sorted(found.items()):
        repaired = sum(plan["outcome"] == SAME for plan in plans)
        clear = sum(plan["outcome"] == "error" for plan in plans)
        times = [plan["seconds"] for plan in plans if "seconds" in plan]
        yield _row(program, len(plans), repaired, clear, len(plans) - repaired - clear, *_times(times))


def _soaks(found: Mapping[str, list[Figure]]) -> Iterator[str]:
    yield from _head("program", "party", "jobs", "memory, MB", "bytes a job", "descriptors")
    for program, stretches in sorted(found.items()):
        for party in sorted({each["party"] for each in stretches}):
            first, *_, last = sorted((s for s in stretches if s["party"] == party), key=lambda s: s["jobs"])
            grown = (last["bytes"] - first["bytes"]) / max(1, last["jobs"] - first["jobs"])
            memory = f"{first['bytes'] / 1e6:.0f} to {last['bytes'] / 1e6:.0f}"
            yield _row(
                program, party, last["jobs"], memory, f"{grown:.0f}", f"{first['files']} to {last['files']}"
            )


def _times(times: list[float]) -> tuple[str, str]:
    return (f"{statistics.median(times):.1f}", f"{max(times):.1f}") if times else ("", "")


def _head(*names: str) -> Iterator[str]:
    yield from ("", _row(*names), _row(*["---"] * len(names)))


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    print(tables(read(*map(Path, sys.argv[1:]))).strip())
