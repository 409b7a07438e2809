"""What a party keeps of a horizontal model: the whole of it, so that any party's part will do.

A server that was told no column names keeps none.
"""

from __future__ import annotations

from dataclasses import dataclass

from horizontal.rounds import Trained


@dataclass(frozen=True)
class Own:
    """One party's own part."""

    trained: Trained
    target: str
    clients: tuple[str, ...]
    id: str | None = None  # a client's
