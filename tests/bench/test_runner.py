"""The bench runner: paired ratios, and a table that says what was met."""

from __future__ import annotations

import pytest

import tests.bench
from tests.bench import Bench, Ratio, Row, bench, ratio
from tests.bench.__main__ import machine, main


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> dict[str, Bench]:
    registered: dict[str, Bench] = {}
    monkeypatch.setattr(tests.bench, "registered", registered)
    monkeypatch.setattr("tests.bench.__main__.registered", registered)
    monkeypatch.setattr(tests.bench, "__path__", [])
    return registered


def fast() -> list[Row]:
    return [
        Row("wide|step", Ratio(1.5, 1.25, 2.0), target=3.0, hope=1.6, note="A [x] over B"),
        Row("slow", Ratio(4.0, 3.5, 5.0), target=3.0),
    ]


def broken() -> list[Row]:
    raise ValueError("no such kernel")


def test_ratio_is_the_median_of_pairs_in_alternating_order(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    order: list[str] = []
    durations = {"a": iter([9.0, 2.0, 6.0, 4.0]), "b": iter([9.0, 1.0, 2.0, 1.0])}

    def call(name: str) -> None:
        order.append(name)
        now[0] += next(durations[name])

    monkeypatch.setattr(tests.bench, "perf_counter", lambda: now[0])
    assert ratio(lambda: call("a"), lambda: call("b"), repeats=3) == Ratio(median=3.0, low=2.0, high=4.0)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"


def test_the_verdict_compares_with_target_and_hope() -> None:
    rows = [Row("r", Ratio(median, median, median), target=3.0, hope=2.0) for median in (2.0, 3.0, 3.1)]
    assert [row.verdict for row in rows] == ["met, and the hope", "met", "not met"]


def test_targets_that_are_not_met_are_shown_and_are_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    bench(fast)
    assert main([]) == 0
    out = capsys.readouterr().out
    assert f"{machine()}\n\n| bench | ratio |" in out
    assert r"| wide\|step | 1.50 | 1.25 to 2.00 | 3 | 1.6 | met, and the hope | A [x] over B |" in out
    assert "| slow | 4.00 | 3.50 to 5.00 | 3 |  | not met |  |" in out


def test_a_bench_that_raises_fails_the_run_and_not_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    bench(broken)
    bench(fast)
    assert main([]) == 1
    captured = capsys.readouterr()
    assert "no such kernel" in captured.err
    assert "| slow |" in captured.out


def test_names_choose(capsys: pytest.CaptureFixture[str]) -> None:
    bench(broken)
    bench(fast)
    assert main(["fast"]) == 0
    assert main(["fasst"]) == 2
    assert "no bench is named fasst; there are: broken, fast" in capsys.readouterr().err


def test_a_name_is_registered_once() -> None:
    bench(fast)
    with pytest.raises(ValueError, match="two benches are named 'fast'"):
        bench(fast)
