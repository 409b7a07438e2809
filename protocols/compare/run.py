"""Run every method on one task, and measure: the same rows, seeds, epochs and network for all.

No line is involved here; each method's roles have their own. Every number but the score and the
parameters held is read from the ledgers and their compute meters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pandas as pd

from protocols.compare.choose import Choice, choose
from protocols.compare.claims import WAYS
from protocols.compare.measure import COLUMNS, differences, measure
from protocols.compare.report import Comparison
from protocols.compare.rows import Topic
from protocols.compare.task import Method, Outcome, Task
from protocols.compare.topics import TOPICS
from protocols.errors import ConfigError, nearest
from protocols.progress import Report as Progress
from protocols.wire.message import OURS

if TYPE_CHECKING:
    pass

GROUP = "vfl.methods"
SEEDS, SEEDS_QUICK = 5, 2

OnOutcome = Callable[[Method, int, Outcome], None]


def compare(
    task: Task,
    methods: Sequence[str] | None = None,
    *,
    seeds: int | None = None,
    quick: bool = False,
    tune: bool = True,
    topics: Sequence[Topic] = TOPICS,
    on_progress: Progress | None = None,
    on_outcome: OnOutcome | None = None,
) -> Comparison:
    """Run `methods` (names as registered or as in the table; default: all) on paired seeds 0, 1, ...

    `quick`: 2 seeds and fewer epochs. `tune`: choose shape and settings first, by validation on rows that
    no seed tests on; otherwise the task's own. `topics`: the rows of the report. `on_outcome` sees each
    outcome, with its ledgers, which are not kept.
    """
    count = seeds if seeds is not None else (SEEDS_QUICK if quick else SEEDS)
    if count < 1:
        raise ConfigError(f"seeds={count} should be at least 1")
    offered = discover(task, methods)
    if tune:
        choice = choose(task, range(count), quick=quick, on_progress=on_progress)
        offered = discover(choice.task, methods)
    else:
        choice = Choice(task, (), 0, 0)
    if methods is None:
        idle = [name for name, entry in registered().items() if not _offers(entry, choice.task)]
        said_of_task = [f"Method {name!r} has nothing for this task and was not run." for name in idle]
        choice = replace(choice, task=replace(choice.task, notes=(*choice.task.notes, *said_of_task)))
    rows: list[dict[str, Any]] = []
    notes: dict[str, list[str]] = {}
    runs = [(method, seed) for method in offered for seed in range(count)]
    for done, (method, seed) in enumerate(runs):
        if on_progress is not None:
            on_progress("methods x seeds", done, len(runs))
        outcome = _run(method, choice.task, seed)
        rows += measure(method, seed, outcome)
        said = notes.setdefault(method.name, [])
        said += [note for note in outcome.notes if note not in said]
        if on_outcome is not None:
            on_outcome(method, seed, outcome)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame = pd.concat([frame, differences(frame)], ignore_index=True).astype({"value": "float64"})
    return Comparison(
        choice.task, tuple(offered), tuple(range(count)), quick, frame, choice, notes, tuple(topics)
    )


def _run(method: Method, task: Task, seed: int) -> Outcome:
    try:
        return method.run(task, seed)
    except Exception as error:
        error.add_note(f"in {method.name}, seed {seed}")
        raise


def registered() -> dict[str, EntryPoint]:
    """The entry points of `vfl.methods` by name; ours first, each group in alphabetical order."""
    found = sorted(entry_points(group=GROUP), key=lambda e: (not _is_ours(e), e.name))
    result: dict[str, EntryPoint] = {}
    for entry in found:
        if result.setdefault(entry.name, entry).value != entry.value:
            warnings.warn(
                f"method {entry.name!r} of {entry.value} is skipped: the name is taken", stacklevel=2
            )
    return result


def load(entry: EntryPoint) -> Callable[[Task], list[Method]] | None:
    """What an entry point names; a broken one of another package gives a warning and None."""
    try:
        return entry.load()  # type: ignore[no-any-return]
    except Exception as error:
        if _is_ours(entry):
            raise
        said = f"{type(error).__name__}: {error}"
        warnings.warn(f"method {entry.name!r} of {entry.value} is skipped: {said}", stacklevel=2)
        return None


def discover(task: Task, names: Sequence[str] | None = None) -> list[Method]:
    """The methods that can run `task`: all that are registered, or those named.

    A name is an entry point's (`"alone"`: all of its methods) or a method's (`"alone: bank"`).

    ConfigError for a name that is not there, and for a method whose `column` is none of the report's.
    """
    entries = registered()
    wanted = list(entries) if names is None else list(names)
    if not wanted:
        raise ConfigError(f"methods: none given; there are {', '.join(sorted(entries))}")
    needed = [e for e in entries.values() if names is None or e.name in wanted]
    if set(wanted) - set(entries):
        needed = list(entries.values())
    found: dict[str, tuple[str, Method]] = {}
    for entry in needed:
        for method in _offers(entry, task):
            _check_column(method, entry)
            if method.name in found:
                warnings.warn(
                    f"method {method.name!r} of {entry.value} is skipped: the name is taken", stacklevel=2
                )
                continue
            found[method.name] = (entry.name, method)
    known = {*entries, *found}
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"no method {name!r}; there are {', '.join(sorted(known))}{nearest(name, known)}"
            )
        if names is not None and not any(name in (own, entry) for own, (entry, _) in found.items()):
            raise ConfigError(f"method {name!r} has nothing for this task")
    order = {column: i for i, column in enumerate(("centralised", "edge", "federated", "split", "vertical"))}
    chosen = [m for name, (entry, m) in found.items() if name in wanted or entry in wanted]
    return sorted(chosen, key=lambda m: order.get(m.column, len(order)))


def _offers(entry: EntryPoint, task: Task) -> list[Method]:
    offer = load(entry)
    if offer is None:
        return []
    try:
        return list(offer(task))
    except Exception as error:
        if _is_ours(entry):
            raise
        said = f"{type(error).__name__}: {error}"
        warnings.warn(f"method {entry.name!r} of {entry.value} is skipped: {said}", stacklevel=2)
        return []


def _check_column(method: Method, entry: EntryPoint) -> None:
    if method.column not in WAYS:
        raise ConfigError(
            f"method {method.name!r} of {entry.value}: column {method.column!r} should be one of "
            f"{', '.join(WAYS)}{nearest(method.column, WAYS)}; in another it would be in no row of the report"
        )


def _is_ours(entry: EntryPoint) -> bool:
    return entry.module.partition(".")[0] in OURS
