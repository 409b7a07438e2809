"""What each party keeps of a boosted model: every part apart from the others.

Takes part: each party, about its own part. A part holds this party's bins and splits; the label party's also
the trees' shapes and leaves, and the classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfl.boosting.parts import Learnt, Owned


@dataclass(frozen=True)
class Own:
    """One party's own part. Those of the label party have `target` and `learnt`."""

    id: str
    owned: Owned
    target: str = ""
    learnt: Learnt | None = None

    @property
    def columns(self) -> list[str | int]:
        """The columns that it was trained with."""
        return [one.name for one in self.owned.bins]
