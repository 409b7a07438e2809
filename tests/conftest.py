"""Test settings: one thread per worker, and hypothesis runs that repeat exactly in CI."""

from __future__ import annotations

import os
import signal

# Two threads on shared cores are slower than one, and change the order in which floats are summed.
# OpenMP reads this once, when torch or numpy first loads it.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# A shell that starts the tests in the background leaves Ctrl-C ignored, for them and for what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
