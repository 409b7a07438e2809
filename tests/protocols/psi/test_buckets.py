"""Bucket by bucket: the same rows, buckets of one size, and a run that goes on at the bucket it was in."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols import private
from protocols.arrays import Arrays
from protocols.errors import ConfigError, DataError, LineError, ProtocolError
from protocols.party import Desk, Party, Unguarded, run
from protocols.psi import buckets, kkrt, stored
from protocols.psi.buckets import capacity
from protocols.psi.choose import Protocol, meet
from protocols.psi.ecdh import BlindedIds, Learns, TwiceBlinded
from protocols.psi.id_columns import InTable
from protocols.psi.ids import Ids, canonical
from protocols.psi.stored import drawer_of, store
from protocols.service.store import Kept, common_step
from protocols.wire.clock import run_virtual
from protocols.wire.codec import decode
from protocols.wire.faults import Faults, Plan
from protocols.wire.ledger import Ledger
from protocols.wire.transport import Envelope, Local


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "FROM", 40)
    monkeypatch.setattr(buckets, "BUCKET", 16)
    monkeypatch.setattr(stored, "PART", 20)


def play(
    sets: dict[str, list[int]],
    learns: dict[str, Learns] | None = None,
    kept: dict[str, Kept] | None = None,
    faults: Plan | None = None,
    protocol: Protocol = "ecdh",
    scratch: Path | None = None,
) -> tuple[dict[str, Any], Ledger]:
    local = Local(list(sets))
    ledger = Ledger(local if faults is None else Faults(local, faults))

    async def role(name: str) -> Any:
        peer = next(other for other in sets if other != name)
        desk = Desk(name, ledger, checkpoints=kept[name] if kept else None)
        async with Party(desk).within("align") as at:
            table = pd.DataFrame({"id": sets[name]}, dtype="int64")
            ids: Ids = canonical(table["id"])
            if scratch is not None and name == "bank":  # whether a party has room for its ids is its affair
                ids = store(InTable(table, ["id"]), scratch)
            return await meet(
                at, peer, ids, (learns or {}).get(name, "both"), protocol, resume=kept is not None
            )

    found, _ = run_virtual(run(**{name: role(name) for name in sets}), local.on_stall)
    return found, ledger


ids = st.lists(st.integers(0, 150), unique=True, max_size=110)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "scratch"
    gc.collect()  # of a run that failed, the error holds what it was about
    assert list((tmp_path / "scratch").iterdir()) == []  # nothing outlives a run


@pytest.mark.parametrize("on_disk", [False, True])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids, ids)
def test_buckets_give_the_rows_that_one_run_gives(
    scratch: Path, on_disk: bool, bank: list[int], shop: list[int]
) -> None:
    scratch.mkdir(exist_ok=True)
    found, _ = play({"bank": bank, "shop": shop}, scratch=scratch if on_disk else None)
    expected = sorted(set(bank) & set(shop), key=lambda i: str(i).encode())
    for name, own in (("bank", bank), ("shop", shop)):
        assert [own[row] for row in found[name].rows] == expected and found[name].size == len(expected)


def test_buckets_are_for_any_protocol() -> None:
    sets = {"bank": [*range(100)], "shop": [*range(50, 150)]}
    by_ecdh, _ = play(sets)
    by_kkrt, ledger = play(sets, protocol="kkrt")
    for name in sets:
        np.testing.assert_array_equal(by_kkrt[name].rows, by_ecdh[name].rows)
    assert BlindedIds.kind not in {entry.kind for entry in ledger}


def test_all_buckets_together_err_as_rarely_as_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of marks that are wide enough for one bucket of 40 alone, these would be a byte too short."""
    monkeypatch.setattr(buckets, "BUCKET", 1)
    widths = set()

    class Seen(Local):
        async def deliver(self, envelope: Envelope) -> None:
            if envelope.kind == TwiceBlinded.kind:
                widths.add(decode(TwiceBlinded, envelope.body).marks.shape[1])
            await super().deliver(envelope)

    monkeypatch.setattr(f"{__name__}.Local", Seen)
    play({"bank": [*range(40)], "shop": [*range(5)]})
    pairs = capacity(40, 40) * capacity(5, 40)
    (width,) = widths
    assert 2**48 < 2**40 * pairs * 40 <= 2 ** (8 * width) and 2**40 * pairs <= 2**48


def test_the_ids_of_all_buckets_count_for_the_limit_of_kkrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kkrt, "MOST", 99)
    with pytest.raises(
        ConfigError, match="100 ids here and 20 at shop; KKRT takes 99 at most|20 ids here and 100"
    ):
        play({"bank": [*range(100)], "shop": [*range(20)]}, protocol="kkrt")


def test_one_may_learn() -> None:
    sets = {"bank": [*range(100)], "shop": [*range(50, 150)]}
    found, _ = play(sets, {"bank": "me", "shop": "peer"})
    assert len(found["bank"].rows) == 50 and found["shop"].rows is found["shop"].size is None


@pytest.mark.parametrize("learns", ["both", "size"])
def test_ids_on_disk_that_are_few_are_compared_in_one_piece(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, learns: Learns
) -> None:
    if learns == "both":
        monkeypatch.setattr(buckets, "FROM", 1000)
    found, ledger = play(
        {"bank": [*range(100)], "shop": [*range(50, 150)]},
        {"bank": learns, "shop": learns},
        scratch=scratch,
    )
    assert found["bank"].size == 50 and {entry.scope for entry in ledger} == {"align"}


def test_the_size_alone_is_learnt_in_one_piece() -> None:
    """Whoever knows the hash that places ids would learn from each bucket's size."""
    sets = {"bank": [*range(100)], "shop": [*range(50, 150)]}
    found, ledger = play(sets, {"bank": "size", "shop": "size"})
    assert [(met.rows, met.size) for met in found.values()] == [(None, 50), (None, 50)]
    assert {entry.scope for entry in ledger} == {"align"}


def test_every_bucket_looks_alike() -> None:
    _, ledger = play({"bank": [*range(90)], "shop": [*range(45)]})
    sizes: dict[str, set[int]] = {"bank": set(), "shop": set()}
    for entry in ledger:
        if entry.kind == BlindedIds.kind:
            sizes[entry.sender].add(entry.nbytes)
    assert all(len(seen) == 1 for seen in sizes.values())
    assert sum(entry.kind == BlindedIds.kind for entry in ledger) == 2 * 6


@pytest.mark.parametrize(("n", "count"), [(10**6, 4), (10**8, 382), (5000, 20), (3, 2)])
def test_ids_find_room_in_every_bucket(n: int, count: int) -> None:
    rng = np.random.default_rng(n)
    most = max(np.bincount(rng.integers(count, size=n)).max() for _ in range(5)) if n < 10**8 else 0
    assert most <= capacity(n, count) <= n
    if n >= 10**6:
        assert capacity(n, count) < 1.03 * n / count  # and little is wasted


def test_a_bucket_is_a_keyed_hash() -> None:
    known = canonical(pd.Series(range(4000)))
    one, other = (drawer_of(known.values, bytes([key]) * 32, 8, 4000) for key in (1, 2))
    assert np.bincount(one, minlength=8).min() > 400 and (one != other).mean() > 0.8


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_run_that_was_cut_goes_on_at_the_bucket_it_was_in(
    tmp_path: Path, scratch: Path, on_disk: bool
) -> None:
    scratch.mkdir()
    sets = {"bank": [*range(100)], "shop": [*range(50, 150)]}
    place = scratch if on_disk else None
    whole, ledger = play(sets)
    kept = {name: Kept(tmp_path / name) for name in sets}
    cut = Plan(cut=("bank", "shop"), cut_after=11)
    with pytest.raises(LineError):
        play(sets, kept=kept, faults=cut, scratch=place)
    done = min(max(kept[name].steps) for name in sets)
    assert 0 < done < 6
    for one in kept.values():
        one.agree(done)
    again, rest = play(sets, kept=kept, scratch=place)
    for name in sets:
        np.testing.assert_array_equal(again[name].rows, whole[name].rows)
    blinded = [sum(entry.kind == BlindedIds.kind for entry in book) for book in (ledger, rest)]
    assert blinded == [2 * 7, 2 * (7 - done)]


def test_what_is_kept_of_a_run_that_was_begun_anew_is_not_gone_on_with(tmp_path: Path) -> None:
    """The shop loses its checkpoints, so both begin anew, with other buckets. Then they are cut off again,
    and the bank is killed before it has kept its second bucket: what it kept of the first run is no use."""

    class Killed(Kept):
        def save(self, done: int, state: Arrays) -> None:
            if done < 2:
                super().save(done, state)

    sets = {"bank": [*range(100)], "shop": [*range(50, 150)]}
    whole, _ = play(sets)
    kept = {name: Kept(tmp_path / name) for name in sets}
    for bank in (kept["bank"], Killed(tmp_path / "bank")):
        with pytest.raises(LineError):
            play(sets, kept={**kept, "bank": bank}, faults=Plan(cut=("bank", "shop"), cut_after=11))
        assert kept["shop"].steps == [1, 2]
        if bank is kept["bank"]:
            kept["shop"].drop()
        done = common_step([one.steps for one in kept.values()])
        for one in kept.values():
            one.agree(done)
    again, _ = play(sets, kept=kept)
    for name in sets:
        np.testing.assert_array_equal(again[name].rows, whole[name].rows)


class Announced(Unguarded):
    """Notes how many ids were announced, and how many could match."""

    def __init__(self) -> None:
        self.said: list[tuple[int, int]] = []

    def announced(self, peer: str, ids: int, most: int) -> None:
        self.said.append((ids, most))


def test_who_goes_on_announces_what_is_left_and_no_other_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what is left could be compared with any number of ids."""
    guard = Announced()
    monkeypatch.setattr(Unguarded, "announced", lambda _, *said: guard.announced(*said))
    sets = {"bank": [*range(100)], "shop": [*range(50, 150)]}
    kept = {name: Kept(tmp_path / name) for name in sets}
    with pytest.raises(LineError):
        play(sets, kept=kept, faults=Plan(cut=("bank", "shop"), cut_after=11))
    places = capacity(100, 7)  # of one bucket, which one that cheats fills with guesses
    assert guard.said == [(7 * places, 100)] * 2
    done = min(max(kept[name].steps) for name in sets)
    for one in kept.values():
        one.agree(done)
    with pytest.raises(ProtocolError, match="bank announced 100 ids when this began, now 110; begin it anew"):
        play({**sets, "bank": [*range(110)]}, kept=kept)
    play(sets, kept=kept)
    left = (7 - done) * places
    assert guard.said[-2:] == [(left, min(100, left))] * 2


def test_who_went_bucket_by_bucket_does_not_go_on_in_one_piece(tmp_path: Path) -> None:
    """Else all would be compared once more, with whatever ids the other brings by now."""
    sets = {"bank": [*range(100)], "shop": [*range(50, 80)]}
    kept = {name: Kept(tmp_path / name) for name in sets}
    with pytest.raises(LineError):
        play(sets, kept=kept, faults=Plan(cut=("bank", "shop"), cut_after=11))
    done = min(max(kept[name].steps) for name in sets)
    assert done > 0
    for one in kept.values():
        one.agree(done)
    with pytest.raises(ProtocolError, match="too few for the buckets that this began with; begin it anew"):
        play({**sets, "bank": [*range(60, 95)]}, kept=kept)


def test_what_is_kept_after_a_bucket_does_not_grow(tmp_path: Path) -> None:
    sets = {"bank": [*range(100)], "shop": [*range(100)]}
    kept = {name: Kept(tmp_path / name) for name in sets}
    play(sets, kept=kept)
    sizes = {file.stat().st_size for file in tmp_path.rglob("*.safetensors")}
    assert len(sizes) == 1


def test_a_disk_that_is_full_ends_the_run_in_words(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"bank": [*range(100)], "shop": [*range(50, 150)]}
    opened, left = (
        private.opener,
        [30],
    )  # files that are opened until the disk is full, in the midst of bucketing

    def until_full(path: str, flags: int) -> int:
        left[0] -= Path(path).parent.parent == scratch
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return opened(path, flags)

    monkeypatch.setattr(private, "opener", until_full)
    with pytest.raises(DataError, match=r"^bank/align: rows cannot be kept in .*: No space left on device"):
        play(sets, scratch=scratch)
