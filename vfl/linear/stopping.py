"""When training ends: by the loss of rows that were held out."""

from __future__ import annotations

import numpy as np

from protocols.arrays import Array


class Patience:
    """Ends training once the best validation loss is so many steps ago. At the label party."""

    def __init__(self, patience: int, best: float = np.inf, since: int = 0) -> None:
        self._patience, self.best, self.since = patience, best, since

    def better(self, loss: float) -> bool:
        """Whether `loss` is the best so far."""
        found = loss < self.best
        self.best, self.since = (loss, 0) if found else (self.best, self.since + 1)
        return found

    @property
    def over(self) -> bool:
        """Whether to go back to the best."""
        return self.since >= self._patience

    def array(self) -> Array:
        """For a checkpoint."""
        return np.array([self.best, self.since])
