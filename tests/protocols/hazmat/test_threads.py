"""Threads for kernels: all tasks are done, in order, by as many threads as were asked for."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from functools import partial

import joblib
import pytest

from protocols.errors import ConfigError
from protocols.hazmat import threads


def test_results_come_in_order_from_as_many_threads_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(3)  # three threads at once, or nobody goes on

    def meet(number: int) -> int:
        meeting.wait(30.0)
        return number

    monkeypatch.setenv("VFL_THREADS", "3")
    assert threads.run([partial(meet, number) for number in range(9)]) == list(range(9))


def test_one_thread_is_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFL_THREADS", "1")
    assert set(threads.run([threading.get_ident] * 5)) == {threading.get_ident()}


def test_a_failure_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFL_THREADS", "2")
    with pytest.raises(ZeroDivisionError):
        threads.run([lambda: 1, lambda: 1 // 0])


def test_there_is_a_thread_for_each_core_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VFL_THREADS", raising=False)
    assert threads.count() == joblib.cpu_count()


@pytest.mark.parametrize("setting", ["0", "-1", "all", "1.5"])
def test_a_setting_that_is_no_number_is_refused(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFL_THREADS", setting)
    with pytest.raises(ConfigError, match="VFL_THREADS should be a number from 1 on"):
        threads.count()


def test_a_forked_process_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFL_THREADS", "2")
    tasks = [partial(int, "3"), partial(int, "4")]
    assert threads.run(tasks) == [3, 4]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(threads.run, (tasks,)).get(30.0) == [3, 4]


def test_a_daemon_thread_that_still_computes_when_the_interpreter_ends_says_nothing() -> None:
    code = """if True:
        import threading, time
        from protocols.hazmat import threads

        def compute():
            while True:
                threads.run([time.monotonic] * 4)

        threading.Thread(target=compute, daemon=True).start()
        time.sleep(0.1)
        # Runs after the pools are closed to new tasks, as the end of a long exit does.
        import atexit
        atexit.register(time.sleep, 0.2)
    """
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "VFL_THREADS": "2"},
    )
    assert ended.stderr == ""
