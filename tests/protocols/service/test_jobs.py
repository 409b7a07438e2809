"""Jobs that wait, are given up, or lose a party: each ends everywhere, and in words at the caller."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from protocols.arrays import Arrays
from protocols.cli.serve import app, parts_app
from protocols.errors import CancelledJobError, LineError, PartyError, ProtocolError, VflError
from protocols.programs import program
from protocols.service import attempt, consent, conversation, jobs, journal
from protocols.service.caller import Connected
from protocols.service.jobs import Control, Renew
from protocols.service.store import Kept, Record, Store
from tests.protocols.service.test_agent import PROPOSAL
from tests.protocols.service.test_caller import watched
from tests.support.networked import CASES, POLICY, columns
from tests.support.seeds import known_seeds
from tests.support.served import lay_out, serving
from tests.support.waiting import HANG, until
from vfl import VerticalNetClassifier

CASE = CASES["vertical-net"]
SERVED = ["post", "telco"]


def book(folder: Path, *parties: str) -> Path:
    """A book without the other parties."""
    left_out = tuple(f"{party} = " for party in tables() if party not in parties)
    lines = (folder / "parties.toml").read_text().splitlines()
    place = folder / f"{parties[0]}-book.toml"
    place.write_text("\n".join(line for line in lines if not line.startswith(left_out)))
    return place


def tables() -> dict[str, pd.DataFrame]:
    """Two callers with labels, and two parties that serve."""
    found = columns()
    return {
        "bank": found["bank"],
        "mill": found["bank"].sample(frac=0.8, random_state=5),
        "post": found["shop"],
        "telco": found["telco"],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("jobs")
    lay_out(folder, tables(), POLICY)
    with serving(folder, *SERVED):
        yield folder


@pytest.fixture(scope="module")
def bank(folder: Path) -> Iterator[Connected]:
    with Connected(book(folder, "bank", *SERVED), "bank", tables()["bank"], patience=HANG) as bank:
        yield bank


@pytest.fixture(scope="module")
def mill(folder: Path) -> Iterator[Connected]:
    with Connected(book(folder, "mill", *SERVED), "mill", tables()["mill"], patience=HANG) as mill:
        yield mill


def fit(caller: Connected, epochs: int = 1) -> VerticalNetClassifier:
    model = VerticalNetClassifier(epochs=epochs, batch_size=32, random_state=1)
    return model.fit(caller, target=f"{caller.me}.y", id="id")


def running(folder: Path, caller: str, party: str = "telco", state: str = "running") -> Record | None:
    found = [r for r in Store(folder / f"{party}-store").all() if (r.caller, r.state) == (caller, state)]
    return found[-1] if found else None


def ended(folder: Path, job: str, party: str) -> str:
    """The state in which a job ended at a party, and how."""
    store = Store(folder / f"{party}-store")
    record = until(lambda: (r := store.find(job)) and r.state not in jobs.OPEN and r)
    until(lambda: not store.checkpoints(job).steps)
    return f"{record.state} {record.reason}"


def test_a_caller_that_falls_silent_loses_its_lease(
    folder: Path, bank: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "LEASE", 0.5)
    monkeypatch.setattr(jobs, "RENEW", 60.0)
    with pytest.raises(CancelledJobError, match=r"^(telco|post)/fit: bank has not been heard for 0.5 s"):
        fit(bank, epochs=10_000)
    job = bank.store.all()[-1].job
    for party in SERVED:
        assert ended(folder, job, party).startswith("cancelled")


def test_a_job_waits_while_another_runs(folder: Path, bank: Connected, mill: Connected) -> None:
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fit, bank, 60)
        until(lambda: running(folder, "bank"))
        second = pool.submit(fit, mill)
        until(lambda: running(folder, "mill", state="proposed"))
        assert running(folder, "bank") and not running(folder, "mill")
        models = first.result(HANG), second.result(HANG)
    done = [next(r for r in Store(folder / "telco-store").all() if r.job == m.run_) for m in models]
    assert [r.state for r in done] == ["done", "done"] and done[0].updated < done[1].updated


def test_two_callers_at_once_do_not_block_each_other(bank: Connected, mill: Connected) -> None:
    def several(caller: Connected) -> list[Any]:
        return [fit(caller).predict_proba(caller).to_numpy().tolist() for _ in range(4)]

    with known_seeds(), ThreadPoolExecutor() as pool:
        for found in [pool.submit(several, caller) for caller in (bank, mill)]:
            first, *others = found.result(HANG)
            assert all(other == first for other in others)


def test_a_person_cancels_a_job_that_runs(folder: Path, bank: Connected) -> None:
    with ThreadPoolExecutor() as pool:
        going = pool.submit(fit, bank, 10_000)
        job = until(lambda: running(folder, "bank")).job
        said = CliRunner().invoke(app, ["cancel", job, "--config", str(folder / "telco.toml")])
        assert said.exit_code == 0, said.output
        with pytest.raises(CancelledJobError, match=r"^telco/fit: cancelled by a person at this party"):
            going.result(HANG)
    assert ended(folder, job, "telco") == "cancelled cancelled by a person at this party"
    why = "telco/fit: cancelled by a person at this party"
    assert ended(folder, job, "post") == f"cancelled cancelled by bank: {why}"
    fit(bank)


def test_a_job_in_the_queue_is_cancelled(folder: Path, bank: Connected, mill: Connected) -> None:
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fit, bank, 60)
        until(lambda: running(folder, "bank"))
        second = pool.submit(fit, mill)
        job = until(lambda: running(folder, "mill", state="proposed")).job
        Store(folder / "telco-store").say("cancel", job)
        with pytest.raises(CancelledJobError, match=r"^telco/fit: cancelled by a person"):
            second.result(HANG)
        first.result(HANG)
    assert ended(folder, job, "post").startswith("cancelled cancelled by mill: telco/fit: cancelled by a ")


def test_steps_are_not_gone_on_with_after_another_alignment(tmp_path: Path) -> None:
    """They are of the rows that were common then."""
    kept = Kept(tmp_path / "job")
    assert not kept.some
    kept.save_alignment(Arrays({"rows": np.arange(3)}))
    for step in (1, 2, 3):
        kept.save(step, Arrays({"step": np.array(step)}))
    assert kept.reached == (True, 3) and kept.steps == [2, 3]
    with pytest.raises(ProtocolError, match="asked to go on after step 2 without an alignment, kept is one"):
        kept.agree(2)
    kept.agree(2, aligned=True)
    assert kept.latest()[0] == 2 and kept.alignment()["rows"].tolist() == [0, 1, 2]  # type: ignore[index]
    kept.agree(0, aligned=True)
    assert kept.reached == (True, 0) and kept.latest() == (0, None) and kept.alignment() is not None
    kept.agree(0)
    assert not kept.some and kept.alignment() is None
    with pytest.raises(ProtocolError, match="asked to go on after step 0 after an alignment, kept is none"):
        kept.agree(0, aligned=True)


def test_few_jobs_of_a_caller_that_were_cut_off_can_be_gone_on_with(tmp_path: Path) -> None:
    """A caller runs one at a time; who leaves any number behind does not fill the disk."""
    store, began = Store(tmp_path), datetime.now(UTC)
    for number in range(jobs.CUT + 3):
        for caller in ("bank", "mill"):
            name = f"{caller == 'mill':x}{number:015x}"
            store.save(Record.of(PROPOSAL.model_copy(update={"job": name}), caller, "failed"))
            store.checkpoints(name).save(1, Arrays())
    store.save(Record.of(PROPOSAL.model_copy(update={"job": "f" * 16}), "bank", "running"))
    store.checkpoints("f" * 16).save(1, Arrays())
    store.drop_checkpoints(began)
    left = [int(record.job[1:], 16) for record in store.resumable() if record.state == "failed"]
    assert sorted(left) == sorted(2 * [*range(3, jobs.CUT + 3)])
    assert store.checkpoints("f" * 16).some and len(store.all()) == 2 * (jobs.CUT + 3) + 1


def test_ctrl_c_cancels_a_job_everywhere(folder: Path, bank: Connected) -> None:
    main = threading.get_ident()

    def interrupt() -> None:
        until(lambda: running(folder, "bank"))
        signal.pthread_kill(main, signal.SIGINT)

    person = threading.Thread(target=interrupt)
    person.start()
    with pytest.raises(KeyboardInterrupt):
        fit(bank, epochs=10_000)
    person.join()
    job = bank.store.all()[-1].job
    assert ended(folder, job, "bank") == "cancelled interrupted"
    for party in SERVED:
        assert ended(folder, job, party) == "cancelled cancelled by bank"
    fit(bank)


def test_a_party_leaves_between_fit_and_predict(tmp_path: Path) -> None:
    lay_out(tmp_path, CASE.tables(), POLICY)
    path, own = tmp_path / "parties.toml", CASE.tables()["bank"]
    with serving(tmp_path, "shop"), Connected(path, "bank", own, patience=1.0) as bank:
        with serving(tmp_path, "telco"):
            model = fit(bank)
            before = model.predict_proba(bank)
        with pytest.raises(LineError, match=r"^bank/predict: telco was not reached within 1 s: .*vfl serve"):
            model.predict(bank)
        bank.patience = 20.0
        with serving(tmp_path, "telco"):
            assert model.predict_proba(bank).equals(before)


def test_a_part_that_was_deleted_is_named(folder: Path, bank: Connected) -> None:
    model = fit(bank)
    said = CliRunner().invoke(parts_app, ["delete", model.run_, "--config", str(folder / "post.toml")])
    assert said.exit_code == 0, said.output
    with pytest.raises(VflError, match=r"^post/predict: "):
        model.predict(bank)


def test_an_error_that_is_not_ours_ends_the_job_and_not_the_party(
    folder: Path, bank: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = program("vertical-net")

    def keep(p: Any, seat: Any, result: Any) -> Any:
        if seat.party == "telco":
            raise KeyError("no such thing")
        return honest.keep(p, seat, result)

    broken = replace(honest, keep=keep)
    monkeypatch.setattr(consent, "program", lambda name: broken)
    with pytest.raises(PartyError, match=r"^telco/fit: PartyError; the reason is in its own log"):
        fit(bank)
    monkeypatch.undo()
    fit(bank)


def test_a_party_that_is_kept_for_one_job_does_another_meanwhile(tmp_path: Path) -> None:
    """`post` is claimed by the bank, which waits for `telco`, where the mill is at work; the farm comes."""
    found = {**tables(), "farm": tables()["mill"]}
    lay_out(tmp_path, found, POLICY)

    def calling(caller: str, *served: str) -> Connected:
        place = tmp_path / f"{caller}-book.toml"
        left_out = tuple(f"{party} = " for party in found if party not in (caller, *served))
        lines = (tmp_path / "parties.toml").read_text().splitlines()
        place.write_text("\n".join(line for line in lines if not line.startswith(left_out)))
        return Connected(place, caller, found[caller], patience=20.0)

    with (
        serving(tmp_path, *SERVED),
        calling("mill", "telco") as mill,
        calling("bank", *SERVED) as bank,
        calling("farm", "post") as farm,
        ThreadPoolExecutor() as pool,
    ):
        lock = pool.submit(fit, mill, 10_000)
        until(lambda: running(tmp_path, "mill"))
        waiting = pool.submit(fit, bank)
        until(lambda: running(tmp_path, "bank", "telco", "proposed"))
        fit(farm)
        assert running(tmp_path, "mill") and not waiting.done()
        Store(tmp_path / "telco-store").say("cancel", running(tmp_path, "mill").job)  # type: ignore[union-attr]
        with pytest.raises(CancelledJobError):
            lock.result(20)
        waiting.result(20)
        fit(farm)


def test_callers_on_slow_lines_come_to_all_their_turns(
    folder: Path, bank: Connected, mill: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn is kept for less than it takes to claim the next party."""
    say = Control.say

    async def slow(self: Control, to: str, word: Any) -> None:
        if self._me in ("bank", "mill") and not isinstance(word, Renew):
            await asyncio.sleep(0.1)
        await say(self, to, word)

    monkeypatch.setattr(Control, "say", slow)
    monkeypatch.setattr(attempt, "CLAIMED", 0.03)
    with ThreadPoolExecutor() as pool:
        for found in [pool.submit(lambda caller: [fit(caller) for _ in range(3)], c) for c in (bank, mill)]:
            assert len(found.result(60)) == 3


def test_whoever_waits_for_a_turn_is_told(
    folder: Path, bank: Connected, mill: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = "waiting until post has done other jobs"
    with ThreadPoolExecutor() as pool, watched(monkeypatch) as seen:
        first = pool.submit(fit, bank, 60)
        until(lambda: running(folder, "bank"))
        second = pool.submit(fit, mill)
        until(lambda: (step, 0, 1) in seen)
        assert (step, 1, 1) not in seen and running(folder, "bank")
        first.result(HANG)
        second.result(HANG)
        assert [said for said in seen if said[0] == step] == [(step, 0, 1), (step, 1, 1)]


def test_no_job_holds_a_party_for_longer_than_it_lets_one(tmp_path: Path) -> None:
    lay_out(tmp_path, CASE.tables(), POLICY)
    config = tmp_path / "telco.toml"
    config.write_text(f"longest_job_hours = {3 / 3600}\n{config.read_text()}")
    said = "the job has held telco for 0.000833333 h, the longest that it lets one (longest_job_hours); "
    said += "make it shorter, or ask telco for more time"
    own = CASE.tables()["bank"]
    with serving(tmp_path, "telco", "shop"), Connected(tmp_path / "parties.toml", "bank", own) as bank:
        with pytest.raises(CancelledJobError) as caught:
            fit(bank, epochs=100_000)
        assert str(caught.value) == f"telco/fit: {said}"
        job = bank.store.all()[-1].job
        for party in ("telco", "shop"):
            how = ended(tmp_path, job, party).removeprefix("cancelled ")
            assert how.removeprefix("cancelled by bank: telco/fit: ") == said  # whichever word came first
        assert not bank.store.checkpoints(job).steps
        fit(bank)


def test_checkpoints_of_a_job_that_nobody_goes_on_with_do_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path, CASE.tables(), POLICY)
    stores = [Store(tmp_path / f"{party}-store") for party in CASE.tables()]

    def kept(job: str) -> list[bool]:
        return [bool(store.checkpoints(job).steps) for store in stores]

    with (
        serving(tmp_path, "telco"),
        Connected(tmp_path / "parties.toml", "bank", CASE.tables()["bank"], patience=1.0) as bank,
        ThreadPoolExecutor() as pool,
    ):
        with serving(tmp_path, "shop"):
            going = pool.submit(fit, bank, 10_000)
            job = until(lambda: running(tmp_path, "bank")).job
            until(lambda: all(kept(job)))
        with pytest.raises(LineError):
            going.result(HANG)
        bank.patience = 20.0
        with serving(tmp_path, "shop"):
            fit(bank)
            assert all(kept(job))  # it can be gone on with
            monkeypatch.setattr(journal, "KEPT", timedelta(0))
            fit(bank)
    assert not any(kept(job)) and [store.find(job).state for store in stores].count("done") == 0  # type: ignore[union-attr]
