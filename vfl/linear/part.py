"""What each party keeps of a linear model: every part apart from the others.

Takes part: each party, about its own part. A part holds this party's standardisation and coefficients; the
label party's also the intercept and the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vfl.linear.parts import Head, Linear


@dataclass(frozen=True)
class Own:
    """One party's own part. Those of the label party have `target` and `head`."""

    id: str
    columns: list[Any]  # names: text, or whole numbers
    fitted: Linear
    label_party: str
    peers: tuple[str, ...]  # all feature parties
    target: str = ""
    head: Head | None = None
