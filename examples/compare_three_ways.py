"""One table, learnt in every way there is here, and asked three questions of the result.

The table is scikit-learn's digits: one organisation has the left half of each image and the label, another
the right half. Run: python examples/compare_three_ways.py
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from protocols.compare.datasets import from_frame, load
from protocols.compare.run import compare
from protocols.compare.task import Task


def fewer_rows(task: Task, rows: int) -> Task:
    """The same question on a smaller table, as one would ask it of a table of one's own."""
    table = task.table.sample(rows, random_state=0)
    return from_frame(table, "some digits", id=task.id, target=task.target, parties=task.columns, clients=3)


def main(rows: int = 600, tune: bool = True) -> pd.DataFrame:
    """Compare, print what was found, write the page; the tidy frame."""
    result = compare(fewer_rows(load("digits"), rows), quick=True, tune=tune)
    print(result.report.text())

    frame = result.frame
    scores = frame[frame["measure"] == "score"].groupby("method")["value"].mean()
    print("What does keeping the data apart cost in accuracy?")
    print((scores - scores["centralised"]).round(3).to_string(), "\n")

    sent = frame[(frame["measure"] == "bytes") & (frame["phase"] == "train") & (frame["seed"] == 0)]
    print("What leaves the organisations to train, and in which message?")
    print(sent.groupby(["method", "kind"])["value"].sum().astype(int).to_string(), "\n")

    print("Which claims of the documents do these numbers not bear out?")
    for row, claim, verdict in result.report.disagreements():
        print(f"- {row}, {verdict.method}: claimed {claim!r}; {verdict.ruling}: {verdict.text}")

    page = result.report.to_html(Path("three_ways.html"))
    print(f"\nThe whole of it, with plots: {page}")
    return frame


if __name__ == "__main__":
    main()
