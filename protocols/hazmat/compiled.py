"""Where compiled kernels are kept: the user's cache directory, by version, sources and CPU.

numba tells a stale entry by the file that its function stands in, and not by the files which that one uses;
so the directory's name holds a digest of all of this package's sources. Entries are pickles, so the directory
is the user's alone (mode 700). A user's own `NUMBA_CACHE_DIR` is obeyed, in a directory of ours below it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from llvmlite.binding import get_host_cpu_name
from numba import config, njit
from numba.core import codegen
from numba.misc.appdirs import AppDirs

F = TypeVar("F", bound=Callable[..., Any])

_kernels: list[Any] = []
_turn = threading.Lock()  # numba's setting is one for the whole process


def part(function: F) -> F:
    """A part of kernels: compiled with whatever calls it, and called by compiled code only."""
    compiled: F = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return compiled


def kernel(function: F) -> F:
    """An entry into compiled code: compiled at its first call in this environment, and read from disk
    afterwards.

    Where no directory can be written it is compiled once in each process. It holds no GIL while it runs.
    """
    with _turn:
        before = config.CACHE_DIR
        config.CACHE_DIR = str(_directory())
        try:
            compiled: F = njit(nogil=True, no_cfunc_wrapper=True, cache=True)(function)
        except RuntimeError:  # no place for a cache
            compiled = njit(nogil=True)(function)
        finally:
            config.CACHE_DIR = before
    _kernels.append(compiled)
    return compiled


def keep_nothing() -> None:
    """Write no compiled code any more in this process: a failure to write fails the call that it serves."""
    for each in _kernels:
        each._cache.disable()


@cache
def _directory() -> Path:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()
    above = Path(config.CACHE_DIR or AppDirs("vfl-toolkit", False).user_cache_dir)
    place = above / f"kernels-{digest[:16]}-numba-{numba.__version__}"
    with suppress(OSError):  # numba will look for another place
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def mark(name: str) -> None:
    """Note on disk that the kernels called `name` were compiled for this CPU and these sources."""
    with suppress(OSError):
        _mark(name).touch()


def marked(name: str) -> bool:
    """Whether they were. Someone may have emptied the directory by half since, so nothing may rely on it."""
    return _mark(name).exists()


def _mark(name: str) -> Path:
    cpu = f"{config.CPU_NAME or get_host_cpu_name()} {config.CPU_FEATURES or codegen.get_host_cpu_features()}"
    return _directory() / f"{name}-{hashlib.sha256(cpu.encode()).hexdigest()[:16]}.ready"
