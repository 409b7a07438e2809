"""torch's own random numbers, borrowed for a moment. No party, and no line.

torch has one generator a process. Whoever draws from it seeds it, and puts it back as it was; threads
take turns, or one fit would draw from another's seed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TURN = threading.RLock()


@contextmanager
def torch_seeded(seed: int | None = None) -> Iterator[None]:
    """Within, torch draws on the CPU from `seed` (None: from where it is); afterwards its state is as before.

    Only the CPU's generator: `torch.manual_seed` would also seed accelerators, which nothing here restores.
    """
    generator = torch.default_generator
    with _TURN:
        before = generator.get_state()
        if seed is not None:
            generator.manual_seed(seed)
        try:
            yield
        finally:
            generator.set_state(before)
