"""A comparison for people and for scripts: terminal tables, tidy JSON, one self-contained page.

No line is involved; nothing here measures. The page opens without a network and runs no script.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from protocols.compare import choose, claims, figures, measure, page
from protocols.compare.choose import Choice
from protocols.compare.claims import LEAKAGE
from protocols.compare.figures import DIRECTIONS, Figures, nbytes, seconds, spread, varied
from protocols.compare.measure import BANDWIDTH, COLUMNS, ROUND_TRIPS, SPEED
from protocols.compare.rows import Row, Topic, Verdict, rows
from protocols.compare.task import Method, Task
from protocols.compare.topics import TOPICS
from protocols.costs import SECONDS_PER_OPERATION
from protocols.errors import DataError
from protocols.files import release, write_out

SCHEMA = 1
WIDTH = 118  # of the text where no terminal says how wide it is


@dataclass(frozen=True)
class Report:
    """A comparison written for people and for scripts: text, JSON and one HTML page."""

    comparison: Comparison

    @cached_property
    def figures(self) -> list[Figures]:
        """Each method's numbers, in the order of the comparison."""
        c = self.comparison
        groups = dict(list(c.frame.groupby("method")))
        return [Figures(m, groups[m.name], c.seeds, c.quick) for m in c.methods]

    @cached_property
    def rows(self) -> list[Row]:
        """What is claimed beside what was measured, a row for each topic of the comparison."""
        return rows(self.figures, self.comparison.topics)

    @property
    def spread_name(self) -> str:
        """What the spread of this report is, in a few words."""
        c = self.comparison
        if len(c.seeds) < 2:
            return "one seed, so no spread"
        kind = "range" if c.quick else f"{measure.CONFIDENCE:.0%} t-interval"
        return f"{kind} over {len(c.seeds)} paired seeds"

    @property
    def spread_said(self) -> str:
        """A reader's sentence on the ± of this report, also on where there is none."""
        c = self.comparison
        if len(c.seeds) < 2:
            return "One seed, so no spread."
        if not c.quick:
            meaning = f"± is the {self.spread_name}."
        elif len(c.seeds) == 2:
            meaning = f"± is the {self.spread_name}: half the distance between the two."
        else:
            meaning = f"In brackets is the {self.spread_name}, ± is half of it."
        return f"{meaning} Costs without ± vary by {figures.UNVARIED:.0%} or less."

    def constants(self) -> dict[str, str]:
        """Every constant behind the numbers, in words."""
        task, choice = self.comparison.task, self.comparison.choice
        s = task.settings
        owners = "; ".join(f"{party}: {_some(names)}" for party, names in task.columns.items())
        prices = ", ".join(f"{name} {1e6 * price:g} µs" for name, price in SECONDS_PER_OPERATION.items())
        held = f"{task.test_size:.0%} for the test" + (", stratified" if s.kind == "classification" else "")
        shape = " – ".join(map(str, (len(task.features), *task.hidden, task.outputs)))
        return {
            "table": f"{task.name}: {len(task.table):,} rows, {len(task.features)} features",
            "target": f"{task.target}, at {task.label_party}; {s.kind}, scored by {task.metric}",
            "columns held by": owners,
            "rows held out": held + "; the same rows for every method on a seed",
            "overlap of ids": "full: every organisation knows every row",
            "row-clients": f"{task.clients}, rows dealt out at random (IID)",
            "network": f"MLP {shape} where one network sees all columns",
            "training": f"{s.optimizer}, learning rate {s.learning_rate:g}, {s.epochs} epochs, batches of "
            f"{s.batch_size}; the same for every method, but the optimizer of fedavg starts afresh each "
            "round",
            "chosen by": self._chosen(choice),
            "seeds": f"{', '.join(map(str, self.comparison.seeds))}; spread: {self.spread_name}",
            "simulated network": f"{ROUND_TRIPS} ms round trip, {BANDWIDTH * 8 / 1e6:g} Mbit/s up from each "
            f"role, {SPEED:.0e} FLOP/s at each role".replace("(", "")
            .replace(")", "")
            .replace("e+", "e"),
            "price of cryptography": f"{prices} each, at the reference speed",
            "words for compute": ", ".join(f"{word} up to {100 * end:g}%" for end, word in claims.LEVELS)
            + " of all training FLOPs",
        }

    @staticmethod
    def _chosen(choice: choose.Choice) -> str:
        if not any(candidate.finite for candidate in choice.candidates):
            return f"nobody: {choice.reason}"
        times = f", mean of {choice.divisions} divisions" if choice.divisions > 1 else ""
        return (
            f"lowest validation loss of {len(choice.candidates)} candidates on {choice.rows} pooled rows "
            f"that no seed tests on ({choose.HELD_OUT:.0%} held out{times}). A real federation could not "
            "pool them. The candidates are ranked by one network over all columns, which favours centralised "
            "and edge; the others might do better with settings of their own."
        )

    def disagreements(self) -> list[tuple[str, str, Verdict]]:
        """(row, claim, verdict) wherever the numbers contradict a claim or show what it leaves out."""
        return [
            (row.title, cell.claim, verdict)
            for row in self.rows
            for cell in row.cells
            for verdict in cell.verdicts
            if verdict.ruling != "agrees"
        ]

    def notes(self) -> list[str]:
        """What the table and the methods have to say."""
        said: dict[str, list[str]] = {}
        for name, notes in self.comparison.notes.items():
            for note in notes:
                said.setdefault(note, []).append(name)
        return [*self.comparison.task.notes, *(f"{', '.join(who)}: {note}" for note, who in said.items())]

    def renderable(self) -> RenderableType:
        """For a rich console."""
        parts: list[RenderableType] = [self._scores(), self._costs()]
        found = self.disagreements()
        if found:
            table = Table(title="Where the numbers and the documents part", title_justify="left")
            for name in ("row", "method", "claimed", "", "measured"):
                table.add_column(name, overflow="fold")
            for row, claim, verdict in found:
                table.add_row(row, verdict.method, claim, verdict.ruling, verdict.text)
            table.caption, table.caption_justify = claims.SOURCE, "left"
            parts.append(table)
        parts += [Text(f"{name}: {said}") for name, said in self.constants().items()]
        parts += [Text(f"Note: {note}") for note in self.notes()]
        return Group(*parts, Text(LEAKAGE))

    def _scores(self) -> Table:
        task = self.comparison.task
        table = Table(title=f"{task.name}: what each way gives, and what leaves", title_justify="left")
        table.add_column("method", no_wrap=True)
        for name in (f"test {task.metric}", "vs centralised", "up", "down", "peer", "to predict"):
            table.add_column(name, justify="right")
        for f in self.figures:
            moved = (f.get("bytes", phase="train", direction=way) for way in DIRECTIONS[:3])
            table.add_row(
                f.name,
                spread(f.score),
                "" if f.difference is None or f.name == "centralised" else spread(f.difference, sign=True),
                *(varied(size, nbytes) for size in moved),
                varied(f.get("bytes", phase="predict"), nbytes),
            )
        table.caption = f"{self.spread_said} Bytes: training up, down and between owners of data."
        table.caption_justify = "left"
        return table

    def _costs(self) -> Table:
        table = Table(title="What each way costs to train", title_justify="left")
        table.add_column("method", no_wrap=True)
        heads = ["messages", "chain/\nepoch", "outside", "owners'\nFLOP", "servers'\nFLOP"]
        for name in heads + [f"{rtt} ms" for rtt in ROUND_TRIPS]:
            table.add_column(name, justify="right")
        for f in self.figures:
            table.add_row(
                f.name,
                varied(f.get("messages", phase="train")),
                varied(f.get("chain_per_epoch")),
                varied(f.get("chain_outside_epochs")),
                varied(f.get("flops", phase="train", side="client")),
                varied(f.get("flops", phase="train", side="other")),
                *(varied(f.get("time", rtt_ms=rtt), seconds) for rtt in ROUND_TRIPS),
            )
        table.caption = (
            "Chain: the most messages in a row of which each waits for the one before, per epoch and outside "
            "the epochs. The last columns: simulated training time by round trip."
        )
        table.caption_justify = "left"
        return table

    def text(self, width: int = WIDTH) -> str:
        """The tables as plain text."""
        out = StringIO()
        Console(file=out, width=width).print(self.renderable())
        return out.getvalue()

    def to_json(self) -> str:
        """Everything, with `measures` as the tidy records of `Comparison.frame`; see `read_measures`."""
        c = self.comparison
        records = c.frame.astype(object).where(c.frame.notna(), None).to_dict("records")
        document = {
            "schema": SCHEMA,
            "version": release(),
            "constants": self.constants(),
            "candidates": [_candidate(candidate) for candidate in c.choice.candidates],
            "methods": [
                {
                    "name": m.name,
                    "column": m.column,
                    "hypothetical": m.hypothetical,
                    "architecture": m.architecture,
                    "privacy": m.privacy,
                }
                for m in c.methods
            ],
            "rows": [asdict(row) for row in self.rows],
            "reveals": {kind: text for f in self.figures for kind, text in _revealed(f).items()},
            "notes": self.notes(),
            "leakage": LEAKAGE,
            "measures": records,
        }
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def html(self) -> str:
        """One self-contained page."""
        return page.render(self, release())

    def to_html(self, path: str | Path) -> Path:
        """Write the page, whole or not at all."""
        return write_out(path, self.html())


def _some(names: Sequence[str]) -> str:
    """A few columns by name, so that a reader knows whose they are, and how many there are."""
    return f"{names[0]} … {names[-1]} ({len(names)})" if len(names) > 2 else ", ".join(names)


def _candidate(candidate: choose.Candidate) -> dict[str, Any]:
    """As JSON: null for the loss and score of one that diverged."""
    missing = {} if candidate.finite else {"loss": None, "score": None}
    return asdict(candidate) | missing


def _revealed(f: Figures) -> dict[str, str]:
    return {t.kind: t.reveals for t in f.traffic}


def read_measures(text: str) -> pd.DataFrame:
    """The tidy frame out of `Report.to_json`."""
    try:
        document = json.loads(text)
        records, schema = document["measures"], document["schema"]
    except (ValueError, KeyError, TypeError):
        raise DataError(
            "this is no report of a comparison: expected JSON with 'schema' and 'measures'"
        ) from None
    if schema != SCHEMA:
        raise DataError(f"the report has schema {schema!r}, this release reads {SCHEMA}")
    return pd.DataFrame(records, columns=COLUMNS)


@dataclass(frozen=True)
class Comparison:
    """What was run and measured. `frame`: one row per method, seed and measure, in tidy form."""

    task: Task
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    quick: bool
    frame: pd.DataFrame
    choice: Choice
    notes: Mapping[str, Sequence[str]]  # method -> what it says about its run
    topics: tuple[Topic, ...] = TOPICS  # what the rows of the report are about

    @cached_property
    def report(self) -> Report:
        """The report of this comparison: text, JSON, one HTML page."""
        return Report(self)
