"""A progress bar for long work; quiet where nobody watches a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

MEMORY = 1800.0  # seconds of the past from which the time that is left is estimated

Report = Callable[[str, int, int], None]


@contextmanager
def bar(label: str) -> Iterator[Report]:
    """Yield `report(step, done, total)`, which draws on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda step, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    # A bucket of a large intersection takes a minute: a shorter memory would see no speed at all.
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, speed_estimate_period=MEMORY
    ) as progress:
        tasks: dict[str, TaskID] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(f"{label}: {step}", total=total)
            progress.update(tasks[step], completed=done, total=total)

        yield report
