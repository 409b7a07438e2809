"""Test settings: enough workers, one thread per worker, and hypothesis runs that repeat exactly in CI."""

from __future__ import annotations

import os
import signal

# Two threads on shared cores are slower than one, and change the order in which floats are summed.
# OpenMP reads this once, when torch or numpy first loads it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# A shell that starts the tests in the background leaves Ctrl-C ignored, for them and for what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The whole suite is divided among two more workers than there are cores, since much of it waits for
    other processes. A part that was named runs in this process: it begins sooner, and a debugger works
    there."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min((os.cpu_count() or 1) + 2, 8) if whole else 0
