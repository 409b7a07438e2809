"""The comparison as one HTML page, which opens without a network and runs no script.

No line is involved; nothing here measures. The words around the numbers are in `report.html`.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Protocol

import jinja2

from protocols.compare import charts, claims, figures
from protocols.compare.figures import DIRECTIONS, Figures, amount, grouped, nbytes, seconds, spread
from protocols.compare.measure import ROUND_TRIPS

METRICS = {"auc": "AUC", "accuracy": "accuracy", "r2": "R²"}


class Shown(Protocol):
    """What the page reads of a `Report`; the template reads more."""

    @property
    def comparison(self) -> Any: ...

    @property
    def figures(self) -> list[Figures]: ...


def render(report: Shown, version: str) -> str:
    """The page of `report`, made by this `version` of the toolkit."""
    source = files("protocols.compare").joinpath("report.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    return environment.from_string(source).render(_context(report, version)) + "\n"


def _context(report: Shown, version: str) -> dict[str, Any]:
    """What the template reads."""
    task = report.comparison.task
    ceiling = math.inf if task.metric not in ("auc", "accuracy", "r2") else 1.0
    charted = {
        "scores": charts.scores(report.figures, ceiling),
        "traffic": charts.traffic(report.figures),
        "times": charts.times(report.figures),
        "work": charts.work(report.figures),
    }
    return {
        "report": report,
        "task": task,
        "metric": METRICS[task.metric],
        "charts": charted,
        "cards": _cards(report),
        "ways": claims.TITLES,
        "rtts": ROUND_TRIPS,
        "directions": DIRECTIONS,
        "leakage": claims.LEAKAGE,
        "source": claims.SOURCE,
        "made": f"{datetime.now(UTC):%Y-%m-%d}",
        "version": version,
        "f": figures,
        "grouped": grouped,
        "role_rows": _role_rows,
    }


def _cards(report: Shown) -> list[tuple[str, str, str]]:
    """(heading, big number, sentence) of what a reader looks for first."""
    cards = []
    metric = METRICS[report.comparison.task.metric]
    central = next((f for f in report.figures if f.name == "centralised"), None)
    if central is not None:
        cards.append(
            (
                f"Centralised {metric}",
                spread(central.score),
                "All rows at one server: the reference.",
            )
        )
    private = [f for f in report.figures if f.method.column in ("federated", "split", "vertical")]
    if private:
        best = max(private, key=lambda f: f.score.mean)
        cards.append((f"Best {metric} without pooling", spread(best.score), f"{best.name}. {_against(best)}"))
        least = min(private, key=lambda f: f.get("bytes", phase="train").mean)
        moved = nbytes(least.get("bytes", phase="train").mean)
        cards.append(("Least data moved to train", moved, f"{least.name}, without pooling raw rows."))
        fast = min(private, key=lambda f: f.get("time", rtt_ms=ROUND_TRIPS[1]).mean)
        took = seconds(fast.get("time", rtt_ms=ROUND_TRIPS[1]).mean)
        cards.append(
            (f"Fastest at {ROUND_TRIPS[1]} ms round trip", took, f"{fast.name}, simulated training time.")
        )
    return cards


def _against(f: Figures) -> str:
    d = f.difference
    if d is None:
        return "Centralised training was not run."
    if math.isnan(d.low):
        return f"{spread(d, sign=True)} against centralised, one seed."
    if d.low <= 0 <= d.high:
        return f"{spread(d, sign=True)} against centralised: no clear difference."
    return f"{spread(d, sign=True)} against centralised."


def _role_rows(f: Figures) -> list[dict[str, str]]:
    """Compute and parameters by role; numbered roles together, each with its mean."""
    lines = []
    for heading, members in grouped(f.roles).items():

        def each(measure: str, write: Any, members: list[str] = members, **where: str) -> str:
            total = sum(f.get(measure, role=role, **where).mean for role in members)
            return str(write(total / len(members))) if total else "–"

        lines.append(
            {
                "role": heading,
                "flops": each("flops", amount, phase="train"),
                "seconds": each("seconds", seconds, phase="train"),
                "cryptography": each("cryptography", amount, phase="train"),
                "predict": each("flops", amount, phase="predict"),
                "parameters": each("parameters", amount),
            }
        )
    return lines
