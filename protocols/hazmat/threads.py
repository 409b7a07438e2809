"""Threads for kernels, which hold no GIL: one for each core, or as many as VFL_THREADS says.

joblib has threads too, but waits for them in steps of ten milliseconds, in which a kernel multiplies ten
thousand numbers. What joblib's settings move elsewhere is what libraries compute one value at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from joblib import cpu_count

from protocols.errors import ConfigError

T = TypeVar("T")


def count() -> int:
    """How many threads kernels may use. ConfigError where VFL_THREADS is no number from 1 on."""
    setting = os.environ.get("VFL_THREADS", "")
    if not setting:
        return _cores()
    if not setting.isdecimal() or int(setting) < 1:
        raise ConfigError(
            f"the environment variable VFL_THREADS should be a number from 1 on, got {setting!r}"
        )
    return int(setting)


def run(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """The results of all tasks, in order. No task may call this again."""
    threads = count()
    if len(tasks) < 2 or threads == 1:
        return [task() for task in tasks]
    try:
        results = _pool(os.getpid(), threads).map(_call, tasks)
    except RuntimeError:
        # The interpreter is ending and its pools take nothing more, while a daemon thread still computes.
        return [task() for task in tasks]
    return list(results)


def _call(task: Callable[[], T]) -> T:
    return task()


@cache
def _cores() -> int:
    return int(cpu_count())


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # By process: threads do not survive a fork.
    return ThreadPoolExecutor(threads, thread_name_prefix="vfl-kernel")
