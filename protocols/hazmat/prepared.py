"""What preparing compiled kernels took: who serves now, and after how long.

A value of its own, so that whoever names it need not import numba.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Prepared:
    """Who serves, after how many seconds of preparation, and whether code had to be compiled for it."""

    by: Literal["ifma", "fma", "library"]
    seconds: float
    how: Literal["compiled", "read from disk", "there already"]
