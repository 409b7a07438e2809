"""A party that serves as a process of its own, dies once as by `kill -9`, and is started again."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch

from protocols.service import attempt, store
from protocols.service.agent import serve_party
from protocols.service.config import read_config
from protocols.testing.served import HANG

_CONTEXT: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")


class Mortal:
    """Used as a context. It dies when it has kept the first step of a training, or its part where there
    are no steps; its seed is `seed`."""

    def __init__(self, config: Path, seed: int) -> None:
        self._told = config, seed
        self.deaths = 0
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._revive, daemon=True)

    def __enter__(self) -> Self:
        self._start(True)
        self._watch.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._process.terminate()
        self._watch.join(HANG)

    def _start(self, dies: bool) -> None:
        self._process = _CONTEXT.Process(target=_serve, args=(*self._told, dies), daemon=True)
        self._process.start()

    def _revive(self) -> None:
        while True:
            self._process.join()
            if self._over.is_set():
                return
            self.deaths += 1
            self._start(False)


def _serve(config: Path, seed: int, dies: bool) -> None:
    torch.set_num_threads(1)
    store.new_seed = lambda: seed  # type: ignore[attr-defined]
    if dies:
        store.Kept.save = _last(store.Kept.save)  # type: ignore[method-assign]
        attempt.save_part = _last(attempt.save_part)  # type: ignore[attr-defined]
    asyncio.run(serve_party(*read_config(config)))


def _last(call: Callable[..., Any]) -> Callable[..., Any]:
    def done_and_dead(*args: Any, **more: Any) -> Any:
        call(*args, **more)
        os.kill(os.getpid(), signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)

    return done_and_dead
