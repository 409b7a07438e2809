"""Run the benches one at a time in this process, and print a table and the same as Markdown.

Exit code: 0 whether or not targets are met, 1 if a bench raised, 2 for a name that there is not.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import re
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

import tests.bench
from tests.bench import Bench, Row, registered

HEAD = ("bench", "ratio", "min to max", "target", "hope", "verdict", "note")


def main(names: Sequence[str]) -> int:
    console, progress = Console(), Console(stderr=True)
    chosen, unknown = _choose(_discover(), names)
    if unknown:
        known = ", ".join(sorted(registered)) or "none"
        progress.print(f"no bench is named {', '.join(unknown)}; there are: {known}", markup=False)
        return 2
    rows: list[Row] = []
    failed: list[str] = []
    for name, run in chosen.items():
        progress.print(f"{name} ...", markup=False)
        try:
            rows += run()
        except pytest.skip.Exception as left_out:  # no table here to measure it on
            progress.print(f"{name} is left out: {left_out}", markup=False)
        except Exception:
            failed.append(name)
            progress.print(traceback.format_exc(), markup=False)
    console.print(machine(), markup=False)
    console.print(_table(rows))
    print(_markdown(rows))
    for name in failed:
        progress.print(f"{name} raised", markup=False)
    return 1 if failed else 0


def _discover() -> dict[str, list[str]]:
    """Import every bench file: {topic: names that it registered}."""
    topics: dict[str, list[str]] = {}
    for found in pkgutil.iter_modules(tests.bench.__path__):
        if found.name.startswith("bench_"):
            module = importlib.import_module(f"tests.bench.{found.name}").__name__
            own = [name for name, run in registered.items() if run.__module__ == module]
            topics[found.name.removeprefix("bench_")] = own
    return topics


def _choose(topics: dict[str, list[str]], names: Sequence[str]) -> tuple[dict[str, Bench], list[str]]:
    wanted = {one for name in names for one in topics.get(name, [name])} if names else set(registered)
    chosen = {name: run for name, run in registered.items() if name in wanted}
    return chosen, sorted(wanted - set(chosen))


def _cells(row: Row) -> tuple[str, ...]:
    hope = "" if row.hope is None else f"{row.hope:g}"
    spread = f"{row.ratio.low:.2f} to {row.ratio.high:.2f}"
    return (row.name, f"{row.ratio.median:.2f}", spread, f"{row.target:g}", hope, row.verdict, row.note)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(*HEAD)
    for row in rows:
        style = "red" if row.verdict == "not met" else "green"
        table.add_row(*(cell.replace("[", r"\[") for cell in _cells(row)), style=style)
    return table


def _markdown(rows: Sequence[Row]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *map(_cells, rows)]
    table = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
    return f"{machine()}\n\n{table}"


def machine() -> str:
    """What the numbers were measured on, with nothing that names the machine or its owner."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    python = platform.python_version()
    return f"{_cpu()}, {cpus} cores; {platform.system()}; Python {python}, {packages}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.machine()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
