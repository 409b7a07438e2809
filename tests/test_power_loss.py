"""A loss of power leaves the old file or the new, never a torn one, of every kind that is written whole."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from protocols import files
from protocols.arrays import Arrays
from protocols.data.reorder import write_rows
from protocols.errors import ConfigError
from protocols.files import make_folder, write_out
from protocols.parts import Part, delete_part, digest, load_part, save_part
from protocols.policy.history import load_history, save_history
from protocols.psi import epochs
from protocols.psi.epochs import Epoch, digest_of, load_epoch, load_marks, save_epoch, save_marks
from protocols.service.certificates import new_authority, new_party
from protocols.service.health import Health, read_status
from protocols.service.store import Kept, Record, Store
from protocols.service.trial import new_trial
from tests.support.power import Disk, Leaf, put

JOB = "ab" * 8
NOTHING = None


@dataclass(frozen=True)
class Kind:
    """A kind of file. write: into a folder, for the first time or the second. read: what is there of it.

    durable: whether it is there once it is written. between: what may be there on the way from old to new.
    """

    write: Callable[[Path, int], object]
    read: Callable[[Path], object]
    durable: bool = True
    between: tuple[object, ...] = ()
    times: tuple[int, ...] = (1, 2)
    deletes: bool = False  # the second time


def record(number: int) -> Record:
    now = datetime(2026, 1, number, tzinfo=UTC)
    return Record(
        job=JOB,
        attempt=number,
        caller="bank",
        program="p",
        action="fit",
        parameters={},
        parties=("bank", "shop"),
        table="main",
        run="",
        state="proposed",
        created=now,
        updated=now,
    )


def saved(store: Path) -> object:
    found = Store(store).find(JOB)
    return found and found.attempt


def approve(store: Path, number: int) -> None:
    Store(store).save(record(1))
    Store(store).say("approve", JOB)


def checkpoint(store: Path, number: int) -> None:
    Kept(store / JOB).save(number, Arrays({"x": np.full(8, number)}))


def reached(store: Path) -> object:
    kept = Kept(store / JOB)
    kept.agree(max(kept.steps, default=0), kept.aligned)
    step, state = kept.latest()
    assert state is None or (state["x"] == step).all()
    return step


def align(store: Path, number: int) -> None:
    Kept(store / JOB).save_alignment(Arrays({"rows": np.arange(number)}))


def aligned(store: Path) -> object:
    kept = Kept(store / JOB)
    kept.agree(0, kept.aligned)
    state = kept.alignment()
    return state and len(state["rows"])


def part(number: int) -> Part:
    return Part("m", "bank", {}, Arrays({"w": np.full(64, number)}), created=datetime(2026, 1, 1, tzinfo=UTC))


def parts(store: Path) -> object:
    return digest(load_part(store, "run")) if (store / "run").exists() else NOTHING


def replace_part(store: Path, number: int) -> None:
    save_part(store, "run", part(number)) if number == 1 else delete_part(store, "run")


def predict(store: Path, number: int) -> None:
    history = load_history(store, "bank", "main")
    save_history(store, "bank", "main", history.with_prediction(f"job {number}"))


def predictions(store: Path) -> object:
    return load_history(store, "bank", "main").predictions


def history_key(store: Path) -> object:
    before = (store / "_history" / "key").exists()
    load_history(store, "bank", "main")
    return before


def an_epoch(number: int) -> Epoch:
    marks = np.full((4, 8), number, np.uint8)
    owners = np.arange(4, dtype=np.uint32)
    return Epoch(bytes(32), bytes(32), bytes(32), marks, owners, digest_of(marks), asked=number)


def keep_epoch(store: Path, number: int) -> None:
    save_epoch(store, "shop", an_epoch(number))


def epoch(store: Path) -> object:
    found = load_epoch(store, "shop")
    return found and found.asked


def forget_epoch(store: Path, number: int) -> None:
    keep_epoch(store, 1) if number == 1 else epochs.forget(store, "shop")


def ask_more(store: Path, number: int) -> None:
    keep_epoch(store, 1) if number == 1 else epochs.take_up(store, "shop", 5, lambda kept: True)


def keep_marks(store: Path, number: int) -> None:
    save_marks(store, "shop", np.full((4, 8), number, np.uint8))


def marks(store: Path) -> object:
    for number in (1, 2):
        sent = np.full((4, 8), number, np.uint8)
        if load_marks(store, "shop", sent.shape, digest_of(sent)) is not None:
            return number
    return NOTHING


def certify(folder: Path, number: int) -> None:
    if number == 1:
        new_authority(folder)
    new_party(folder, folder, "bank", replace=True)


def certificates(folder: Path) -> object:
    """Each is whole, whichever of them are there."""
    for path in folder.glob("[!.]*.pem"):
        x509.load_pem_x509_certificate(path.read_bytes())
    for path in folder.glob("[!.]*.key"):
        load_pem_private_key(path.read_bytes(), None)
    return None


def certificate(folder: Path) -> object:
    certificates(folder)
    path = folder / "bank.pem"
    return path.read_bytes() if path.exists() else NOTHING


def trial(folder: Path, number: int) -> None:
    new_trial(folder, ["bank", "shop"], port=7000 + 50 * number, replace=True)


def text(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        path = folder / name
        return path.read_text() if path.exists() else NOTHING

    return read


def report(folder: Path, number: int) -> None:
    write_out(folder / "report.html", str(number) * 64)


def reorder(folder: Path, number: int) -> None:
    write_rows(folder.parent / "source.parquet", np.arange(number * 100)[::-1].copy(), folder / "out.parquet")


def reordered(folder: Path) -> object:
    path = folder / "out.parquet"
    return tuple(pd.read_parquet(path)["x"]) if path.exists() else NOTHING


def status(folder: Path, number: int) -> None:
    Health(Store(folder))._look(lambda: {"number": number})


def last_status(folder: Path) -> object:
    try:
        return read_status(Store(folder))["number"]
    except ConfigError:
        return NOTHING


KINDS = {
    "a job's record": Kind(lambda store, n: Store(store).save(record(n)), saved),
    "a person's word": Kind(
        approve, lambda store: Store(store).said("approve", JOB, record(1).request), times=(1,)
    ),
    "the word is taken": Kind(
        lambda store, n: approve(store, n) if n == 1 else Store(store).said("approve", JOB),
        lambda store: (store / "approve" / JOB).exists(),
        times=(2,),
        deletes=True,
    ),
    "checkpoints": Kind(checkpoint, reached, durable=False, between=(0, 1, 2), times=(1, 2, 3)),
    "common rows": Kind(align, aligned),
    "a part": Kind(replace_part, parts, deletes=True),
    "a history": Kind(predict, predictions),
    "a history's key": Kind(lambda store, n: load_history(store, "bank", "main"), history_key, times=(1,)),
    "an epoch": Kind(keep_epoch, epoch, between=(NOTHING,)),
    "a forgotten epoch": Kind(forget_epoch, epoch, times=(2,), deletes=True),
    "an epoch's count": Kind(ask_more, epoch, times=(2,)),
    "marks": Kind(keep_marks, marks),
    "certificates": Kind(certify, certificate),
    "the book": Kind(trial, text("parties.toml")),
    "a configuration": Kind(trial, text("bank.toml"), times=(1,)),
    "a report": Kind(report, text("report.html")),
    "rows in another order": Kind(reorder, reordered),
    "a status": Kind(status, last_status, durable=False, between=(NOTHING,)),
}
CASES = [pytest.param(kind, time, id=f"{name} {time}") for name, kind in KINDS.items() for time in kind.times]


class Trees:
    """Reads what is in a tree by way of a folder of its own."""

    def __init__(self, kind: Kind, place: Path) -> None:
        self._kind, self._place, self._count = kind, place, 0

    def read(self, tree: dict[Path, Leaf] | Path) -> object:
        self._count += 1
        place = self._place / str(self._count)
        shutil.copytree(tree, place) if isinstance(tree, Path) else put(tree, place)
        try:
            return self._kind.read(place)
        except Exception as error:
            return f"torn: {type(error).__name__}: {error}"
        finally:
            shutil.rmtree(place)


@contextmanager
def written(kind: Kind, time: int, tmp_path: Path) -> Iterator[tuple[Disk, Trees, object]]:
    """A disk that watches what is written within; how to read it; and what was there before."""
    root = tmp_path / "root"
    make_folder(root)
    make_folder(tmp_path / "read")
    pd.DataFrame({"x": np.arange(200)}).to_parquet(tmp_path / "source.parquet", index=False)
    for earlier in range(1, time):
        kind.write(root, earlier)
    trees = Trees(kind, tmp_path / "read")
    yield Disk(root), trees, trees.read(root)


@pytest.mark.parametrize(("kind", "time"), CASES)
def test_a_loss_of_power_leaves_the_old_or_the_new(kind: Kind, time: int, tmp_path: Path) -> None:
    with written(kind, time, tmp_path) as (disk, trees, old), pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        kind.write(disk.root, time)
    new = trees.read(disk.root)
    assert old != new and "torn" not in f"{old} {new}"
    assert {value for value in map(trees.read, disk.moments)} <= {old, new, *kind.between}
    if kind.durable:
        assert {value for value in map(trees.read, disk.left())} == {new}


def no_file_flush(patch: pytest.MonkeyPatch) -> None:
    flush = os.fsync
    patch.setattr(os, "fsync", lambda handle: stat.S_ISDIR(os.fstat(handle).st_mode) and flush(handle))


def no_folder_flush(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(files, "flush_folder", lambda folder: None)


LEFT_OUT = [
    pytest.param(kind, time, left_out, id=f"{name} {time} {left_out.__name__}")
    for name, kind in KINDS.items()
    for time in kind.times
    for left_out in (no_file_flush, no_folder_flush)
    if kind.durable and not (kind.deletes and time == 2 and left_out is no_file_flush)
]


@pytest.mark.parametrize(("kind", "time", "left_out"), LEFT_OUT)
def test_a_flush_that_is_left_out_is_found(
    kind: Kind, time: int, left_out: Callable[[pytest.MonkeyPatch], None], tmp_path: Path
) -> None:
    with written(kind, time, tmp_path) as (disk, trees, _), pytest.MonkeyPatch.context() as patch:
        disk.collects = False
        disk.watch(patch)
        left_out(patch)
        kind.write(disk.root, time)
    new = trees.read(disk.root)
    assert any(trees.read(tree) != new for tree in disk.left())
