"""Laws of the store: what was saved is what is loaded, whole or not at all, and damage is noticed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocols import parts
from protocols.arrays import Arrays
from protocols.errors import ConfigError, DataError
from protocols.parts import Part, delete_part, digest, list_parts, load_part, save_part

WHEN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
PEER = "ab" * 32


def part(scale: float = 1.0, **changes: Any) -> Part:
    fields: dict[str, Any] = {
        "method": "vertical",
        "party": "bank",
        "settings": {"cut": 8, "layers": [64, 32], "rate": 0.1, "name": "größe", "none": None},
        "kept": {"columns": ["a", 1], "target": None},
        "weights": Arrays({"0.weight": np.arange(6, dtype=np.float32).reshape(2, 3) * scale}),
        "others": {"shop": PEER},
        "created": WHEN,
    }
    return Part(**(fields | changes))


def tamper(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = part()
    place = save_part(tmp_path / "deep" / "store", "run-1", saved)
    assert sorted(file.name for file in place.iterdir()) == ["part.json", "weights.safetensors"]
    loaded = load_part(tmp_path / "deep" / "store", "run-1")
    assert loaded == saved
    assert loaded.weights["0.weight"].dtype == np.float32
    assert not loaded.weights["0.weight"].flags.writeable
    assert digest(loaded) == digest(saved)


@pytest.mark.parametrize(
    "array",
    [
        *(np.array([0, 1, 3]).astype(name) for name in sorted(parts.DTYPES)),
        np.array(2.5),
        np.zeros((0, 4), np.float32),
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0)[::-2],
        np.arange(3, dtype=">f8"),
        np.array([np.nan, -0.0, np.inf]),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_every_array_comes_back_bit_for_bit(array: np.ndarray, tmp_path: Path) -> None:
    save_part(tmp_path, "run", part(weights=Arrays({"w": array})))
    loaded = load_part(tmp_path, "run").weights["w"]
    assert loaded.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(loaded, array)
    assert loaded.tobytes() == array.astype(loaded.dtype).tobytes()


def test_a_part_may_have_no_weights(tmp_path: Path) -> None:
    save_part(tmp_path, "run", part(weights=Arrays()))
    assert load_part(tmp_path, "run").weights == Arrays()


def test_the_store_is_for_its_owner(tmp_path: Path) -> None:
    assert save_part(tmp_path, "run", part()).stat().st_mode & 0o077 == 0


def test_the_digest_is_of_the_part_not_of_the_occasion() -> None:
    assert digest(part()) == digest(part(created=datetime.now(UTC), others={}))
    changed = [part(2.0), part(party="shop"), part(method="split"), part(settings={})]
    assert len({digest(one) for one in [part(), *changed]}) == 5


def test_listing_and_deleting(tmp_path: Path) -> None:
    assert list_parts(tmp_path / "none") == []
    for run in ("b", "a.1"):
        save_part(tmp_path, run, part())
    (tmp_path / "notes").mkdir()
    assert list_parts(tmp_path) == ["a.1", "b"]
    delete_part(tmp_path, "b")
    assert list_parts(tmp_path) == ["a.1"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.1", "notes"]


def test_a_missing_run_lists_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'x' is not in the store; there are: none"):
        load_part(tmp_path / "none", "x")
    save_part(tmp_path, "a", part())
    for act in (load_part, delete_part):
        with pytest.raises(ConfigError, match="'x' is not in the store; there are: a"):
            act(tmp_path, "x")


@pytest.mark.parametrize(
    "run", ["", ".", "..", "../a", "a/b", "a\\b", "/a", ".part-1", "a\n", "a b", "x" * 129, "ä"]
)
def test_a_run_id_is_a_plain_name(run: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    store = tmp_path / "store"
    save_part(store, "a", part())
    with pytest.raises(ConfigError, match="no plain name"):
        save_part(store, run, part())
    for act in (load_part, delete_part):
        with pytest.raises(ConfigError, match="no plain name"):
            act(store, run)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "store"]


def test_an_identical_part_may_be_saved_again_and_no_other(tmp_path: Path) -> None:
    place = save_part(tmp_path, "run", part())
    before = (place / "part.json").stat()
    assert save_part(tmp_path, "run", part(created=datetime.now(UTC))) == place
    assert (place / "part.json").stat() == before
    for other in (part(2.0), part(others={"shop": "cd" * 32}), part(settings={"cut": 9})):
        with pytest.raises(
            DataError, match=r"bank: run 'run' already holds another part \(vertical, 2026-01-02 03:04 UTC"
        ):
            save_part(tmp_path, "run", other)
    assert digest(load_part(tmp_path, "run")) == digest(part())


@pytest.mark.parametrize("damage", ["flip", "truncate", "lengthen", "replace"])
def test_damaged_weights_are_noticed(damage: str, tmp_path: Path) -> None:
    file = save_part(tmp_path, "run", part()) / "weights.safetensors"
    whole = file.read_bytes()
    other = save_part(tmp_path, "other", part(2.0)) / "weights.safetensors"
    damaged = {
        "flip": whole[:-1] + bytes([whole[-1] ^ 1]),
        "truncate": whole[:-1],
        "lengthen": whole + b"\0",
        "replace": other.read_bytes(),
    }
    file.write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"bank: weights.safetensors of run 'run' is not what was saved"):
        load_part(tmp_path, "run")


def test_missing_weights_are_noticed(tmp_path: Path) -> None:
    (save_part(tmp_path, "run", part()) / "weights.safetensors").unlink()
    with pytest.raises(DataError, match="bank: run 'run' cannot be read: No such file"):
        load_part(tmp_path, "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 7}, "has schema version 7, this release reads 2; train again"),
        ({"schema_version": 1}, "has schema version 1, this release reads 2; train again"),
        ({"schema_version": None}, "has schema version None, this release reads 2"),
        ({"party": "shop"}, "shop: part.json of run 'run' was changed after it was saved"),
        ({"settings": {"cut": 9}}, "was changed after it was saved"),
        ({"kept": {"rows": 9}}, "was changed after it was saved"),
        ({"files": {"../weights.safetensors": PEER}}, "was changed after it was saved"),
        ({"surprise": 1}, "damaged: surprise: Extra inputs are not permitted"),
        ({"others": {"shop": "short"}}, "damaged: others.shop: String should match pattern"),
        ({"created": "2026-01-02T03:04:05"}, "damaged: created: Input should have timezone info"),
    ],
)
def test_a_changed_part_json_is_noticed(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    tamper(save_part(tmp_path, "run", part()) / "part.json", **changes)
    with pytest.raises(DataError, match=message):
        load_part(tmp_path, "run")


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "\ufeff{}", "{}"])
def test_any_text_as_part_json_is_an_error_of_ours(text: str, tmp_path: Path) -> None:
    (save_part(tmp_path, "run", part()) / "part.json").write_text(text)
    with pytest.raises(DataError, match="part.json of run 'run'"):
        load_part(tmp_path, "run")


def test_a_file_name_in_part_json_is_never_followed(tmp_path: Path) -> None:
    place = save_part(tmp_path, "run", part())
    kept = json.loads((place / "part.json").read_text())
    files = {"../secret": kept["files"]["weights.safetensors"]}
    forged = parts._digest(kept["method"], kept["party"], kept["settings"], kept["kept"], files)
    tamper(place / "part.json", files=files, digest=forged)
    with pytest.raises(DataError, match="was changed"):
        load_part(tmp_path, "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights": Arrays({"w": np.array(["a"])})},
            r"bank: weights\['w'\] should be bool, integer or float",
        ),
        ({"weights": Arrays({"w": np.array([object()])})}, "got dtype object"),
        ({"settings": {"rate": float("nan")}}, "bank: settings should be JSON values"),
        ({"settings": {"when": WHEN}}, "bank: settings should be JSON values"),
        ({"kept": {"when": WHEN}}, "bank: kept should be JSON values"),
        ({"others": {"shop": "xyz"}}, "bank: the part cannot be written: others.shop"),
    ],
)
def test_what_cannot_be_kept_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        save_part(tmp_path, "run", part(**changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_no_trace(
    call: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_part(tmp_path, "earlier", part())

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(
        (DataError, KeyboardInterrupt), match=r"bank: run 'run' was not saved: No space left|^$"
    ):
        save_part(tmp_path, "run", part())
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["earlier"]
    assert digest(load_part(tmp_path, "earlier")) == digest(part())


def test_a_kill_before_the_rename_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_part(tmp_path, "earlier", part())

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)
    with pytest.raises(KeyboardInterrupt):
        save_part(tmp_path, "run", part())
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 2
    assert list_parts(tmp_path) == ["earlier"]
    with pytest.raises(ConfigError, match="there are: earlier"):
        load_part(tmp_path, "run")
    save_part(tmp_path, "run", part())
    assert digest(load_part(tmp_path, "run")) == digest(part())


def test_a_kill_while_deleting_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_part(tmp_path, "run", part())

    def killed(path: Path) -> None:
        (path / "weights.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        delete_part(tmp_path, "run")
    assert list_parts(tmp_path) == []


def test_a_parts_repr_shows_no_weight() -> None:
    assert "array" not in repr(part())
