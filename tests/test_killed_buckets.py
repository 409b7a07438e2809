"""Either party of a large intersection is killed in its midst and started again: the same result, and only
the buckets that it was in are done again."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from protocols.cli.main import main
from protocols.psi import buckets, choose, kkrt, stored
from protocols.record.reconcile import verify
from protocols.service.store import Store
from tests.support.forked import Forked
from tests.support.served import lay_out
from tests.support.waiting import until

ids = pd.Series(range(10**9, 10**9 + 2_000_000)).astype(str)


def bucketed(start: int, size: int, *words: str) -> None:
    """`vfl` with smaller buckets: what large sets do is seen with small ones."""
    stored.FROM = buckets.FROM = choose.LARGE = start
    stored.PART = buckets.BUCKET = size
    sys.argv = ["vfl", *words]
    main()


@contextmanager
def process(folder: Path, sizes: tuple[int, int], *words: str) -> Iterator[Forked]:
    """sizes: ids from which on there are buckets, and ids in one. words: after `vfl`."""
    started = Forked(folder / f"{words[0]}.log", bucketed, *sizes, *words)
    try:
        yield started
    finally:
        started.kill()


def waits(true: Callable[[], bool], folder: Path, *alive: Forked) -> None:
    """Until it is true, as long as these are alive."""

    def logs() -> str:
        return "".join(log.read_text()[-2000:] for log in folder.glob("*.log"))

    def look() -> bool:
        assert all(process.poll() is None for process in alive), logs()
        return true()

    until(look, logs)


def steps(store: Store) -> int:
    """After how many buckets the job's latest checkpoint is."""
    return max((max(store.checkpoints(job.job).steps, default=0) for job in store.resumable()), default=0)


def offers(store: Store) -> Counter[str]:
    """How often each bucket was begun."""
    rows = [json.loads(line) for line in store.ledger.read_text().splitlines()]
    return Counter(row["scope"] for row in rows if row.get("kind") == kkrt.SeedOffer.kind)


@pytest.mark.parametrize(
    ("many", "start", "size"),
    [(60_000, 1000, 3000), pytest.param(1_000_000, 1_000_000, 50_000, marks=pytest.mark.long)],
)
def test_a_killed_party_goes_on_at_its_bucket(tmp_path: Path, many: int, start: int, size: int) -> None:
    rng = np.random.default_rng(1)
    owned = {"bank": rng.permutation(many), "shop": rng.permutation(many) + many // 2}
    tables = {p: pd.DataFrame({"id": ids.to_numpy()[rows], p: np.arange(many)}) for p, rows in owned.items()}
    book = lay_out(tmp_path, dict.fromkeys(tables), 'protocols = ["ecdh", "kkrt"]\n')
    for party, table in tables.items():
        table.to_parquet(tmp_path / f"{party}.parquet", row_group_size=many // 3)
    config = tmp_path / "shop.toml"
    config.write_text(config.read_text().replace('"shop.csv"', '"shop.parquet"'))
    stores = {party: Store(tmp_path / f"{party}-store") for party in tables}
    out = tmp_path / "bank.aligned.parquet"
    serve = ("serve", str(config))
    call = (
        "psi",
        "--book",
        str(book),
        "--me",
        "bank",
        "--table",
        f"{tmp_path}/bank.parquet",
        "--id",
        "id",
        *("--out", str(out)),
    )
    count, kills = -(-many // size), {"shop": 3, "bank": 8}
    with process(tmp_path, (start, size), *call) as caller:
        with process(tmp_path, (start, size), *serve):
            waits(lambda: steps(stores["shop"]) >= kills["shop"], tmp_path, caller)
        assert list(stores["shop"].scratch.iterdir())  # ids of a process that is no more
        with process(tmp_path, (start, size), *serve) as served:
            waits(lambda: steps(stores["bank"]) >= kills["bank"], tmp_path, caller)
            caller.kill()
            with process(tmp_path, (start, size), *call) as again:
                assert again.wait() == 0, (tmp_path / "psi.log").read_text()[-3000:]
            served.terminate()
            served.wait()
    common = np.sort(np.intersect1d(tables["bank"]["id"], tables["shop"]["id"]))
    expected = {p: table.set_index("id").loc[common].reset_index() for p, table in tables.items()}
    pd.testing.assert_frame_equal(pd.read_parquet(out), expected["bank"])
    for store in stores.values():
        begun = offers(store)
        assert len(begun) == count
        # Of a kill's bucket, and of the one before where only one party had kept it.
        assert sum(n - 1 for n in begun.values()) <= 2 * len(kills)
        assert [job.attempt for job in store.all()] == [1 + len(kills)]  # which were in time
        assert not any(store.scratch.glob("*")) and not store.resumable()
    assert verify(*(store.ledger for store in stores.values())).agree
    (job,) = os.listdir(stores["shop"].parts)
    words = ("export", job, "--config", str(config), "--out", str(tmp_path / "shop.aligned.parquet"))
    with process(tmp_path, (start, size), "psi", *words) as export:
        assert export.wait() == 0
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "shop.aligned.parquet"), expected["shop"])
