"""Laws of the history: it compares as sets of ids would, keeps no id, and is never lost in silence."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import zipfile
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ConfigError, DataError
from protocols.policy import history as histories
from protocols.policy import past
from protocols.policy.history import KEY, Histories, History, load_history, save_history

SECRET = bytes(range(KEY))
_ids = st.lists(st.binary(max_size=3) | st.integers(0, 20).map(lambda n: str(n).encode()), max_size=12)


def difference(rows: list[bytes], earlier: list[list[bytes]]) -> int | None:
    found = [len(set(rows) ^ set(one)) for one in earlier]
    return min((n for n in found if n), default=None)


@given(st.lists(_ids, max_size=5), _ids)
def test_row_sets_differ_as_sets_do(earlier: list[list[bytes]], rows: list[bytes]) -> None:
    history = History(SECRET)
    for one in earlier:
        history = history.with_fit(history.fingerprints(one))
    assert history.nearest_fit(history.fingerprints(rows)) == difference(rows, earlier)
    assert len(history.fits) == len({frozenset(one) for one in earlier})
    assert history.distinct == history.predictions == 0


@given(st.lists(_ids, max_size=5), _ids)
def test_predicted_ids_are_counted_once(batches: list[list[bytes]], fitted: list[bytes]) -> None:
    history = History(SECRET)
    for at, batch in enumerate(batches):
        if at == 1:
            history = history.with_fit(history.fingerprints(fitted))
        history = history.with_predicted(history.fingerprints(batch))
    assert history.distinct == len({one for batch in batches for one in batch})


@given(st.lists(st.text(max_size=2), max_size=8))
def test_predict_jobs_are_counted_once(jobs: list[str]) -> None:
    history = History(SECRET)
    for job in jobs:
        history = history.with_prediction(job)
    assert history.predictions == len(set(jobs))
    assert all(map(history.began, jobs)) and not history.began("another")


@settings(max_examples=20)  # each writes to the disk, and waits for it
@given(_ids, _ids, _ids)
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, a: list[bytes], b: list[bytes], c: list[bytes]
) -> None:
    store = tmp_path_factory.mktemp("store")
    history = load_history(store, "bank", "main").with_prediction("job")
    history = history.with_fit(history.fingerprints(a)).with_fit(history.fingerprints(b))
    history = history.with_predicted(history.fingerprints(c)).with_alignment("job", 5, 4, NOW)
    save_history(store, "bank", "main", history)
    loaded = load_history(store, "bank", "main")
    assert (loaded.predictions, loaded.distinct) == (1, history.distinct)
    for name in ("jobs", "ids", "predicted", "fits", "aligned"):
        before, after = getattr(history, name), getattr(loaded, name)
        assert before.dtype == after.dtype and np.array_equal(before, after)
    assert loaded.nearest_fit(loaded.fingerprints(c)) == difference(c, [a, b])


NOW = datetime(2026, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_nothing_of_an_alignment_is_lost_when_old_ones_become_one_sum(
    said: list[tuple[int, int, int]],
) -> None:
    history, kept = History(SECRET), []
    for at, (hour, announced, matched) in enumerate(sorted(said)):
        history = history.with_alignment(f"job {at}", announced, matched, NOW + hour * HOUR)
        kept.append((hour, announced, matched))
    for column, name in ((1, "announced"), (2, "matched")):
        assert history.aligned[name].sum() == sum(one[column] for one in kept)
        now = max((hour for hour, *_ in kept), default=0)
        for back in (0, 1, 24, 8 * 24):
            known = history.since(NOW + (now - back) * HOUR)[name].sum()
            assert known == sum(one[column] for one in kept if one[0] >= now - back)
    assert (np.diff(history.aligned["when"]) >= 0).all()


def test_a_clock_that_is_set_back_hides_no_alignment() -> None:
    history = History(SECRET).with_alignment("job 1", 10, 10, NOW).with_alignment("job 2", 10, 10, NOW - HOUR)
    assert len(history.since(NOW)) == 2


def test_alignments_take_a_bounded_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "MOST", 5)
    history = History(SECRET)
    for at in range(20):
        history = history.with_alignment(f"job {at}", 10, 10, NOW).with_matched(f"job {at}", 3)
    assert len(history.aligned) == 6 and history.aligned["announced"].sum() == 200
    assert history.aligned["matched"].sum() == 60
    assert history.since(NOW)["announced"].sum() == 200  # what is one sum counts at its last moment
    assert history.of("job 19")["matched"].tolist() == [3] and not len(history.of("job 1"))


def test_a_history_is_read_once_until_its_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path)
    both, read = (Histories(tmp_path), Histories(tmp_path)), list[str]()
    load = histories.load_history

    def reading(*of: Any) -> History:
        read.append("read")
        return load(*of)

    monkeypatch.setattr(histories, "load_history", reading)
    for _ in range(3):
        assert both[0].load("bank", "main").predictions == 0
    assert len(read) == 1
    both[1].save("bank", "main", both[1].load("bank", "main").with_prediction("job"))
    assert [one.load("bank", "main").predictions for one in both] == [1, 1]
    assert len(read) == 3  # by each once more than what it wrote itself
    (tmp_path / "_history" / "bank.main.npz").write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        both[1].load("bank", "main")
    shutil.rmtree(tmp_path / "_history")  # forgotten on purpose
    assert both[1].load("bank", "main").predictions == 0


def test_peers_and_tables_have_histories_of_their_own(tmp_path: Path) -> None:
    save_history(tmp_path, "bank", "main", load_history(tmp_path, "bank", "main").with_prediction("job"))
    assert load_history(tmp_path, "bank", "main").predictions == 1
    assert load_history(tmp_path, "bank", "other").predictions == 0
    assert load_history(tmp_path, "shop", "main").predictions == 0
    assert load_history(tmp_path, "shop", "main").key == load_history(tmp_path, "bank", "main").key


def test_no_id_is_kept_and_none_can_be_hashed_to(tmp_path: Path) -> None:
    canary = os.urandom(16)
    history = load_history(tmp_path, "bank", "main")
    history = history.with_fit(history.fingerprints([canary])).with_predicted(history.fingerprints([canary]))
    save_history(tmp_path, "bank", "main", history.with_prediction(canary.hex()))
    kept = b"".join(file.read_bytes() for file in (tmp_path / "_history").iterdir())
    assert history.fingerprints([canary]).tobytes() in kept
    hashes = [hashlib.new(name, canary).digest() for name in ("sha256", "sha512", "md5", "blake2b")]
    hashes += [hashlib.blake2b(canary, digest_size=16).digest()]
    for known in (canary, canary.hex().encode(), b64encode(canary), *(h[:16] for h in hashes)):
        assert known not in kept
    assert canary.hex() not in repr(history) and history.key.hex() not in repr(history)
    assert repr(history.key) not in repr(history)


def test_a_store_has_a_key_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    one, two = (load_history(tmp_path / name, "bank", "main") for name in "ab")
    assert one.key != two.key and len(one.key) == KEY
    assert not np.array_equal(one.fingerprints([b"1"]), two.fingerprints([b"1"]))
    assert load_history(tmp_path / "a", "bank", "main").key == one.key


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    save_history(tmp_path, "bank", "main", load_history(tmp_path, "bank", "main"))
    for place in (tmp_path / "_history", *(tmp_path / "_history").iterdir()):
        assert stat.S_IMODE(place.stat().st_mode) & 0o077 == 0
    assert sorted(file.name for file in (tmp_path / "_history").iterdir()) == ["bank.main.npz", "key"]


def kept(store: Path) -> Path:
    history = load_history(store, "bank", "main")
    save_history(store, "bank", "main", history.with_fit(history.fingerprints([b"1", b"2"])))
    return store / "_history" / "bank.main.npz"


@pytest.mark.parametrize(
    "damage",
    ["empty", "cut", "flip", "no zip", "one array", "missing array", "types", "bits", "order", "alignments"],
)
def test_a_damaged_history_does_not_count_as_empty(damage: str, tmp_path: Path) -> None:
    file = kept(tmp_path)
    whole = file.read_bytes()
    with np.load(file) as read:
        arrays = dict(read)
    match damage:
        case "empty":
            file.write_bytes(b"")
        case "cut":
            file.write_bytes(whole[:-30])
        case "flip":
            at = whole.index(arrays["ids"].tobytes())
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        case "no zip":
            file.write_bytes(b"history")
        case "one array":
            with file.open("wb") as other:
                np.save(other, arrays["ids"])
        case "missing array":
            arrays.pop("fits")
            np.savez(file, **arrays)
        case "types":
            np.savez(file, **{**arrays, "ids": arrays["ids"].view(np.uint64)})
        case "bits":
            np.savez(file, **{**arrays, "predicted": np.zeros(2, np.uint8)})
        case "alignments":
            np.savez(file, **{**arrays, "aligned": np.zeros(2, np.int64)})
        case "order":
            np.savez(file, **{**arrays, "ids": arrays["ids"][::-1]})
    with pytest.raises(DataError, match=r"bank\.main\.npz: it is damaged or of another store's key; restore"):
        load_history(tmp_path, "bank", "main")


SPRUNG: list[str] = []


class Trap:
    """Whoever unpickles it springs it."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return spring, ("sprung",)


def spring(word: str) -> None:
    SPRUNG.append(word)


def test_objects_in_a_history_are_not_unpickled(tmp_path: Path) -> None:
    file = kept(tmp_path)
    with np.load(file) as read:
        arrays = dict(read)
    np.savez(file, **{**arrays, "ids": np.array([Trap()], object)})
    with pytest.raises(DataError, match="damaged"):
        load_history(tmp_path, "bank", "main")
    assert SPRUNG == []


def test_a_lost_or_foreign_key_is_noticed(tmp_path: Path) -> None:
    key = kept(tmp_path).with_name("key")
    whole = key.read_bytes()
    key.unlink()
    with pytest.raises(DataError, match="key: it is missing beside the histories"):
        load_history(tmp_path, "bank", "main")
    with pytest.raises(DataError, match="key: it is missing beside the histories"):
        load_history(tmp_path, "shop", "other")
    assert not key.exists()
    key.write_bytes(os.urandom(KEY))
    with pytest.raises(DataError, match="of another store's key"):
        load_history(tmp_path, "bank", "main")
    key.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=f"it has {KEY - 1} bytes, expected {KEY}"):
        load_history(tmp_path, "bank", "main")
    key.write_bytes(whole)
    assert len(load_history(tmp_path, "bank", "main").fits) == 1


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_history(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kept(tmp_path)
    history = load_history(tmp_path, "bank", "main")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DataError, match=r"bank\.main\.npz cannot be written: No space left on device"):
        save_history(tmp_path, "bank", "main", history.with_prediction("job"))
    with pytest.raises(DataError, match="key cannot be written: No space left on device"):
        load_history(tmp_path / "new", "bank", "main")
    monkeypatch.undo()
    assert sorted(entry.name for entry in file.parent.iterdir()) == ["bank.main.npz", "key"]
    assert load_history(tmp_path, "bank", "main").predictions == 0
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]


def test_row_sets_of_one_table_cost_a_bit_for_each_id(tmp_path: Path) -> None:
    history = load_history(tmp_path, "bank", "main")
    ids = [str(n).encode() for n in range(4000)]
    for last in range(3900, 4000, 10):
        history = history.with_fit(history.fingerprints(ids[:last]))
    save_history(tmp_path, "bank", "main", history)
    assert len(history.fits) == 10
    with zipfile.ZipFile(tmp_path / "_history" / "bank.main.npz") as file:
        assert sum(entry.file_size for entry in file.infolist()) < 4000 * (16 + 11 / 8) + 2000


@pytest.mark.parametrize("table", ["/../../outside", "../outside", "", "a.b", "a\0", "_key"])
def test_a_history_is_kept_under_names_only(tmp_path: Path, table: str) -> None:
    store = tmp_path / "store"
    history = load_history(store, "bank", "main")
    with pytest.raises(ConfigError, match="no names of a party and a table"):
        save_history(store, "bank", table, history)
    assert [place.name for place in tmp_path.rglob("*") if place.is_file()] == ["key"]
