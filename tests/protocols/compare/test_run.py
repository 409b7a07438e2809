"""Laws of the comparison: every method, the same rows and seeds, and no number but from the ledgers."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pandas as pd
import pytest

from protocols.compare import run as module
from protocols.compare.measure import COLUMNS, ROUND_TRIPS, Spread, direction, network
from protocols.compare.report import Comparison
from protocols.compare.run import compare, discover, registered
from protocols.compare.task import Method, Outcome, Task
from protocols.errors import ConfigError, DataError
from tests.support import tiny


class Seen:
    """Keeps what the comparison would drop: every outcome."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, int], Outcome] = {}

    def __call__(self, method: Method, seed: int, outcome: Outcome) -> None:
        self.outcomes[method.name, seed] = outcome


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def result(seen: Seen) -> Comparison:
    return compare(tiny.task(), quick=True, tune=False, on_outcome=seen)


def test_every_registered_method_is_in_the_frame(result: Comparison) -> None:
    names = {m.name for m in result.methods}
    assert set(result.frame["method"]) == names
    assert list(result.frame.columns) == COLUMNS
    columns = {m.column for m in result.methods}
    assert columns == {"federated", "split", "centralised", "edge", "vertical", "alone"}
    for measure in ("score", "difference", "epochs", "chain_per_epoch", "chain_outside_epochs", "owners"):
        per_run = result.frame[result.frame["measure"] == measure].groupby(["method", "seed"]).size()
        assert len(per_run) == 2 * len(names) and (per_run == 1).all(), measure


def test_bytes_and_messages_are_the_ledgers_sums(result: Comparison, seen: Seen) -> None:
    sums = result.frame.groupby(["method", "seed", "phase", "measure"])["value"].sum()
    for (name, seed), outcome in seen.outcomes.items():
        for phase, ledger in (("train", outcome.ledger), ("predict", outcome.predict_ledger)):
            assert sums.get((name, seed, phase, "bytes"), 0) == sum(e.nbytes for e in ledger)
            assert sums.get((name, seed, phase, "messages"), 0) == len(ledger)
            flops = sum(meter.flops for meter in ledger.compute.values())
            assert sums.get((name, seed, phase, "flops"), 0) == pytest.approx(flops)
    assert result.frame["value"].notna().all()


def test_times_are_replays_and_only_messages_make_them_grow(result: Comparison, seen: Seen) -> None:
    times = result.frame[result.frame["measure"] == "time"].set_index(["method", "seed", "rtt_ms"])["value"]
    for (name, seed), outcome in seen.outcomes.items():
        got = [times.loc[(name, seed, rtt)] for rtt in ROUND_TRIPS]
        assert got == [outcome.ledger.replay(network(rtt)) for rtt in ROUND_TRIPS]
        silent = not len(outcome.ledger)
        assert (got[0] == got[-1]) if silent else (got[0] < got[1] < got[2])


def test_all_methods_see_the_same_test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[int, list[tuple[object, ...]]] = {}
    original = Task.split

    def spy(self: Task, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        parts = original(self, seed)
        drawn.setdefault(seed, []).append(tuple(parts[1][self.id]))
        return parts

    monkeypatch.setattr(Task, "split", spy)
    result = compare(tiny.task(), seeds=2, tune=False)
    assert set(drawn) == {0, 1}
    assert all(len(set(rows)) == 1 and len(rows) >= len(result.methods) for rows in drawn.values())
    assert drawn[0][0] != drawn[1][0]


def test_the_difference_is_paired_by_seed(result: Comparison) -> None:
    by = result.frame.set_index(["measure", "method", "seed"])["value"].to_dict()
    for method in result.methods:
        for seed in result.seeds:
            expected = by["score", method.name, seed] - by["score", "centralised", seed]
            assert by["difference", method.name, seed] == expected
    assert by["difference", "centralised", 0] == 0


def test_parameters_add_up_to_one_network_where_it_is_divided(result: Comparison) -> None:
    rows = result.frame[(result.frame["measure"] == "parameters") & (result.frame["seed"] == 0)]
    held = {name: group.set_index("role")["value"] for name, group in rows.groupby("method")}
    whole = held["centralised"]["server"]
    assert held["split: vanilla"]["client0"] + held["split: vanilla"]["server"] == whole
    assert (held["fedavg"] == whole).all()


def test_a_quantity_is_learnt_by_every_method_too(result: Comparison) -> None:
    regression = compare(tiny.task("regression"), seeds=1, tune=False)
    assert [m.name for m in regression.methods] == [m.name for m in result.methods]
    assert regression.task.metric == "r2"
    assert "scored by r2" in regression.report.text(width=300)


def test_a_comparison_without_centralised_has_no_difference() -> None:
    result = compare(tiny.task(), ["edge"], seeds=1, tune=False)
    assert "difference" not in set(result.frame["measure"])
    assert result.report.figures[0].difference is None


def test_methods_are_named_by_entry_point_or_by_name() -> None:
    task = tiny.task()
    assert [m.name for m in discover(task, ["alone"])] == ["alone: bank", "alone: telco (hypothetical)"]
    assert [m.name for m in discover(task, ["edge", "alone: bank"])] == ["edge", "alone: bank"]
    with pytest.raises(ConfigError, match="no method 'fedavgg'; there are .*did you mean 'fedavg'"):
        discover(task, ["fedavgg"])


def test_a_broken_method_of_another_package_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("quantum", "no_such_package.methods:quantum", module.GROUP)
    shadow = EntryPoint("edge", "another.methods:edge", module.GROUP)
    ours = list(registered().values())
    monkeypatch.setattr(module, "entry_points", lambda group: [broken, shadow, *ours])
    with pytest.warns(UserWarning, match="is skipped") as said:
        found = discover(tiny.task())
    texts = [str(w.message) for w in said]
    assert any("'quantum' of no_such_package.methods:quantum is skipped" in t for t in texts)
    assert any("'edge' of another.methods:edge is skipped: the name is taken" in t for t in texts)
    assert {"edge", "centralised"} <= {m.name for m in found}


def test_a_broken_method_of_ours_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("lost", "protocols.compare.baselines:lost", module.GROUP)
    monkeypatch.setattr(module, "entry_points", lambda group: [broken])
    with pytest.raises(AttributeError, match="lost"):
        discover(tiny.task())


def stray(task: Task) -> list[Method]:
    return [Method("stray", "federatd", "", "", lambda task, seed: pytest.fail("it was run"))]


@pytest.mark.parametrize("names", [None, ["stray"], ["edge", "stray"]])
def test_a_method_in_an_unknown_column_is_refused(
    monkeypatch: pytest.MonkeyPatch, names: list[str] | None
) -> None:
    """It was measured, and then in none of the rows."""
    entry = EntryPoint("stray", f"{__name__}:stray", module.GROUP)
    ours = list(registered().values())
    monkeypatch.setattr(module, "entry_points", lambda group: [*ours, entry])
    expected = (
        r"'stray' of .*:stray: column 'federatd' should be one of federated, .*did you mean 'federated'"
    )
    with pytest.raises(ConfigError, match=expected):
        compare(tiny.task(), names, seeds=1, tune=False)


def test_a_run_that_fails_says_which() -> None:
    task = tiny.task()
    task.table.loc[3, "a"] = np.nan
    with pytest.raises(DataError) as error:
        compare(task, ["alone: bank"], seeds=1, tune=False)
    assert error.value.__notes__ == ["in alone: bank, seed 0"]


def test_directions() -> None:
    clients = frozenset({"a", "b"})
    got = [direction(*pair, clients) for pair in [("a", "s"), ("s", "b"), ("a", "b"), ("s", "t")]]
    assert got == ["up", "down", "peer", "servers"]


def test_the_interval_is_students_and_the_quick_one_the_range() -> None:
    s = Spread.of([1.0, 2.0, 3.0])
    assert s.mean == 2.0
    assert s.high - s.mean == pytest.approx(4.302652730 / 3**0.5)
    assert s.mean - s.low == pytest.approx(s.high - s.mean)
    assert Spread.of([1.0, 2.0, 6.0], quick=True) == Spread(3.0, 1.0, 6.0)
    assert np.isnan(Spread.of([1.0]).low)
