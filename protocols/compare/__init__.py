"""The comparison: methods side by side on one table, measured, and shown as text, JSON and a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.lazy import lazily

if TYPE_CHECKING:
    from protocols.compare.run import compare
    from protocols.compare.task import Method, Outcome, Task

__all__ = ["Method", "Outcome", "Task", "compare"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Method": "protocols.compare.task",
        "Outcome": "protocols.compare.task",
        "Task": "protocols.compare.task",
        "compare": "protocols.compare.run",
    },
)
