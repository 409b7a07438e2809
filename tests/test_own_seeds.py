"""Over a network each party draws from a seed of its own, that nobody else can know, and goes on with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from protocols.arrays import Arrays
from protocols.errors import DataError
from protocols.hazmat.paillier import Plain
from protocols.parts import load_part
from protocols.party import Role, Run
from protocols.service import attempt
from protocols.service import caller as connect
from protocols.service.caller import Connected
from protocols.service.role import serve_role
from protocols.service.store import Kept, Store
from protocols.wire.ledger import Ledger
from protocols.wire.transport import Envelope, Transport
from tests.support.networked import CASES, POLICY, SEED, columns
from tests.support.seeds import Seeded
from tests.support.served import Process, lay_out, serving
from tests.test_canaries import needles
from tests.test_solving import seen_by
from vfl import VerticalGradientBoostingClassifier, VerticalLogisticRegression, VerticalNetClassifier
from vfl.linear.messages import LinearStart

Seeds = list[tuple[str, int]]  # of which party, job for job


@contextmanager
def watched() -> Iterator[tuple[Seeds, list[bytes]]]:
    """The seed of each role that runs in this process, and the bytes of all its messages."""
    seeds: Seeds = []
    bodies: list[bytes] = []
    record = Ledger._record

    async def seen(post: Transport, role: Role, **more: Any) -> Run:
        seeds.append((more["name"], more["seed"]))
        return await serve_role(post, role, **more)

    def tap(self: Ledger, envelope: Envelope) -> int:
        bodies.append(bytes(envelope.body))
        return record(self, envelope)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "serve_role", seen)
        patch.setattr(connect, "serve_role", seen)
        patch.setattr(Ledger, "_record", tap)
        yield seeds, bodies


@pytest.mark.parametrize("method", CASES)
def test_no_two_parties_and_no_two_jobs_have_one_seed_and_none_is_told_or_kept(
    method: str, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    case, own = CASES[method], CASES[method].tables()[CASES[method].caller]
    lay_out(tmp_path, case.tables(), POLICY)
    caller = Connected(tmp_path / "parties.toml", case.caller, own, patience=20.0)
    with serving(tmp_path, *case.served), caller as all_, watched() as (seeds, bodies):
        for _ in range(2):
            case.play(all_)
    assert {party for party, _ in seeds} == set(case.tables())
    numbers = [seed for _, seed in seeds]
    assert len({*numbers, SEED}) == len(seeds) + 1 >= 2 * len(case.tables())
    assert min(numbers) > 2**128  # or this was the one run in 2**120
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert bodies and len(kept) > 10
    for seed in numbers:
        for needle in [*needles(seed.to_bytes(32)), str(seed).encode()]:
            assert not any(needle in text for text in [*bodies, *kept])


def until(true: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def two() -> dict[str, pd.DataFrame]:
    found = columns()
    return {"bank": found["bank"], "telco": found["telco"]}


def test_killed_and_started_again_a_party_goes_on_with_its_seed(tmp_path: Path) -> None:
    """Both seeds are from the operating system; the run in one process is given them afterwards."""
    torch.set_num_threads(1)
    book, data = lay_out(tmp_path, two(), POLICY), two()
    stores = {party: Store(tmp_path / f"{party}-store") for party in data}
    telco = Process(tmp_path / "telco.toml")

    def fit(all_: Any) -> VerticalNetClassifier:
        return VerticalNetClassifier(epochs=40, batch_size=16).fit(all_, target="bank.y", id="id")

    def begun() -> Kept | None:
        jobs = [kept for job in stores["telco"].all() if (kept := stores["telco"].checkpoints(job.job)).steps]
        return jobs[0] if jobs else None

    try:
        caller = Connected(book, "bank", data["bank"], patience=60.0)
        with caller as all_, ThreadPoolExecutor() as pool, watched() as (seeds, _):
            going = pool.submit(fit, all_)
            kept = until(begun)
            telco.kill()
            done = kept.steps[-1]
            kept.agree(done, kept.aligned)
            of_telco = kept.seed
            telco.start()
            there = going.result(120)
    finally:
        telco.stop()
    (bank,) = {seed for _, seed in seeds}
    assert len(seeds) >= 2 and 1 <= done < 40  # it was killed on the way
    expected = Seeded(data)
    expected.seeds = {"bank": bank, "telco": of_telco}
    here = fit(expected)
    for party, module in (("telco", here.parts_["telco"].bottom), ("bank", here.parts_["bank"].bottom)):
        assert module is not None
        weights = load_part(stores[party].parts, there.run_).weights
        for name, tensor in module.module.state_dict().items():
            np.testing.assert_array_equal(weights[f"bottom.module.{name}"], tensor.numpy())


def test_a_seed_is_kept_with_the_states_that_came_of_it_and_goes_with_them(tmp_path: Path) -> None:
    state, folder = Arrays({"w": np.arange(3.0)}), tmp_path / "job"
    first = Kept(folder)
    first.agree(0)
    assert Kept(folder).seed != first.seed and not folder.exists()  # nothing came of it yet
    for done in (1, 2):
        first.save(done, state)
    assert (folder / "seed").stat().st_mode & 0o077 == 0
    for done in (2, 1):
        again = Kept(folder)
        again.agree(done)
        assert again.seed == first.seed and again.latest() == (done, state)
    first.drop()
    assert not folder.exists() and Kept(folder).seed != first.seed


def test_what_begins_anew_draws_anew(tmp_path: Path) -> None:
    """Else a caller could begin again and again, and ask other things of the same secret sample of rows."""
    for keep in (Kept(tmp_path), Kept(tmp_path)):
        before = keep.seed
        keep.save_alignment(Arrays())
        again = Kept(tmp_path)
        again.agree(0, aligned=True)
        assert again.seed == before
        again.save(1, Arrays())
        again = Kept(tmp_path)
        again.agree(1, aligned=True)
        assert again.seed == before
        again = Kept(tmp_path)
        again.agree(0)
        assert again.seed != before and not again.some


def test_states_without_their_seed_are_not_gone_on_from(tmp_path: Path) -> None:
    """As where a party was killed while it forgot a job."""
    state = Arrays({"w": np.arange(3.0)})
    Kept(tmp_path).save(7, state)
    (tmp_path / "seed").unlink()
    torn = Kept(tmp_path)
    assert torn.steps == []
    torn.agree(0)
    torn.save(1, state)
    assert Kept(tmp_path).steps == [1]
    (tmp_path / "seed").write_text("torn")
    with pytest.raises(DataError, match=r"seed cannot be read: ValueError"):
        _ = Kept(tmp_path).seed


def test_trees_that_are_added_are_judged_by_the_same_rows(tmp_path: Path) -> None:
    """As below; the model may have been saved meanwhile."""
    how: dict[str, Any] = {"early_stopping": True, "max_depth": 1, "encryption": Plain()}
    fit = partial(VerticalGradientBoostingClassifier.fit, data=two(), target="bank.y", id="id")
    model = fit(VerticalGradientBoostingClassifier(n_estimators=1, **how))
    key = model.parts_["bank"].learnt.held_out
    loaded = VerticalGradientBoostingClassifier.load(tmp_path, model.save(tmp_path))
    loaded.set_params(n_estimators=2, warm_start=True, random_state=5)
    assert fit(loaded).parts_["bank"].learnt.held_out == key
    assert fit(model.set_params(random_state=5)).parts_["bank"].learnt.held_out != key


def test_who_starts_from_a_model_judges_by_the_same_rows(tmp_path: Path) -> None:
    """Each job has other seeds, and rows that were learnt from must not become those that are held out."""
    lay_out(tmp_path, two(), POLICY)
    bank = Connected(tmp_path / "parties.toml", "bank", two()["bank"], patience=20.0)
    model = VerticalLogisticRegression(early_stopping=True, max_iter=2, validation_fraction=0.3)
    held_out = []
    with serving(tmp_path, "telco"), bank as all_:
        for warm in (False, True, False):
            with seen_by("telco") as seen:
                model.set_params(warm_start=warm).fit(all_, target="bank.y", id="id")
            held_out += [sorted(m.held_out.tolist()) for _, m in seen if isinstance(m, LinearStart)]
    assert held_out[0] == held_out[1] != held_out[2]
