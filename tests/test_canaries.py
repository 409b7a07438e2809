"""What no party writes down or says in an error, whatever goes wrong: a cell, an id, a key."""

from __future__ import annotations

import base64
import secrets
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from protocols.errors import VflError
from protocols.logs import structured
from protocols.programs import program
from protocols.psi import curve, ecdh, ring
from protocols.service import consent
from protocols.service.caller import Connected
from protocols.service.store import Store
from tests.support.networked import POLICY
from tests.support.served import lay_out, serving
from tests.support.waiting import HANG, until
from vfl import VerticalNetClassifier

ROWS = 30
CELL = "canary-cell-x7Qm"


def needles(secret: bytes) -> set[bytes]:
    """How it would look: raw, in hex, in base64 wherever it begins."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    for before in range(3):
        code = base64.b64encode(bytes(before) + secret).decode()
        # Characters at the ends hold bits of the neighbours.
        found.add(code[(8 * before + 5) // 6 : (8 * (before + len(secret))) // 6].encode())
    return found


def test_the_search_finds_what_it_looks_for() -> None:
    secret = secrets.token_bytes(16)
    for before in range(4):
        beside = secrets.token_bytes(before) + secret + secrets.token_bytes(3)
        for text in (beside, beside.hex().encode(), base64.b64encode(beside)):
            assert any(needle in text for needle in needles(secret))


def ids() -> list[str]:
    rng = np.random.default_rng(7)
    return [f"canary-id-{number:08x}" for number in rng.integers(2**32, size=ROWS)]


def tables() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(3)
    x = pd.DataFrame(rng.uniform(1e5, 1e6, size=(ROWS, 4)).round(6), columns=list("abcd"))
    x.insert(0, "id", ids())
    y = (x["a"] > x["a"].median()).map({True: "canary-label-yes", False: "canary-label-no"})
    return {"bank": x[["id", "a"]].assign(y=y), "telco": x[["id", "b", "c"]], "shop": x[["id", "d"]]}


@dataclass
class Watched:
    """A federation that logs all it can, and the errors that were seen."""

    folder: Path
    log: Path
    bank: Connected
    keys: list[bytes] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def fit(self, **settings: Any) -> VerticalNetClassifier:
        model = VerticalNetClassifier(**{"epochs": 1, "batch_size": 16, **settings})
        return model.fit(self.bank, target="bank.y", id="id")

    def fails(self, work: Callable[[], Any]) -> None:
        with pytest.raises(VflError) as caught:
            work()
        error = caught.value
        self.errors.append(f"{error!r} {error}")
        if error.party != "bank":  # its own table's errors are chained to what they came from
            self.errors.append("".join(traceback.format_exception(error)))

    def with_table(self, party: str, change: Callable[[pd.DataFrame], pd.DataFrame | str]) -> None:
        """A job that fails since a party's file is changed."""
        place = self.folder / f"{party}.csv"
        sound = place.read_text()
        changed = change(tables()[party])
        place.write_text(changed if isinstance(changed, str) else changed.to_csv(index=False))
        try:
            self.fails(self.fit)
        finally:
            place.write_text(sound)

    def written(self) -> Iterator[tuple[str, bytes]]:
        """All that a party writes down of a job beside its part, its checkpoints and its own table."""
        yield "log", self.log.read_bytes()
        yield "errors", "\n".join(self.errors).encode()
        for store in self.folder.glob("*-store"):
            for path in store.rglob("*"):
                if path.is_file() and "_history/key" not in str(path):
                    yield str(path.relative_to(self.folder)), path.read_bytes()


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    torch.set_num_threads(1)
    lay_out(tmp_path, tables(), POLICY)
    keys: list[bytes] = []

    def scalar() -> bytes:
        keys.append(secrets.token_bytes(32))
        return keys[-1]

    for module in (curve, ecdh, ring):
        monkeypatch.setattr(module, "new_scalar", scalar)
    log = tmp_path / "all.log"
    with (
        structured("debug", log),
        serving(tmp_path, "telco", "shop"),
        Connected(tmp_path / "parties.toml", "bank", tables()["bank"], patience=HANG) as bank,
    ):
        yield Watched(tmp_path, log, bank, keys)


def secrets_of(watched: Watched) -> Iterator[tuple[str, bytes]]:
    """All that must be nowhere, by what it is."""
    for name in ids():
        yield "id", name.encode()
    for label in ("canary-label-yes", "canary-label-no", CELL):
        yield "cell", label.encode()
    for table in tables().values():
        for value in table.select_dtypes("float64").to_numpy().ravel():
            yield "cell", repr(float(value)).encode()
            yield "cell", np.float64(value).tobytes()
    for key in watched.keys:
        yield "scalar", key
    for path in watched.folder.glob("*.key"):
        body = "".join(path.read_text().splitlines()[1:-1])
        yield "TLS key", base64.b64decode(body)[-32:]
    for path in watched.folder.glob("*-store/_history/key"):
        yield "history key", path.read_bytes()


def test_nothing_secret_is_written_down(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    model = watched.fit()
    model.predict(watched.bank)
    for change in CHANGES:
        watched.with_table("telco", change)
    bank = watched.bank
    own = bank.data
    assert own is not None
    for wrong in (
        own.assign(a=CELL),
        own.assign(id=np.arange(ROWS)),
        own.assign(id=[ids()[0]] * ROWS),
        own.iloc[:2],
    ):
        bank.data = wrong
        watched.fails(watched.fit)
    bank.data = own.assign(id=[f"other-{i}" for i in range(ROWS)])
    watched.fails(watched.fit)
    bank.data = own
    monkeypatch.setattr(consent, "program", lambda name: broken)
    watched.fails(watched.fit)
    monkeypatch.undo()
    person = threading.Thread(target=cancel, args=(Store(watched.folder / "telco-store"),))
    person.start()
    watched.fails(lambda: watched.fit(epochs=10_000))
    person.join()
    watched.fit()

    said = dict(watched.written())
    assert watched.keys
    assert len(said["log"]) > 5000 and len(watched.errors) > 12 and len(said) > 30
    found = {
        (what, name)
        for what, secret in secrets_of(watched)
        for needle in needles(secret)
        for name, text in said.items()
        if needle in text and not _of_the_part(what, name)
    }
    assert not found


def _of_the_part(what: str, name: str) -> bool:
    """A label party's part holds the labels' names: it is what it predicts."""
    return what == "cell" and name.startswith("bank-store/parts/") and name.endswith("part.json")


CHANGES: list[Callable[[pd.DataFrame], pd.DataFrame | str]] = [
    lambda t: t.assign(b=CELL),
    lambda t: t.assign(b=[CELL, *t["b"][1:]]),
    lambda t: pd.concat([t, t.iloc[:3]]),
    lambda t: t.assign(id=["", *t["id"][1:]]),
    lambda t: t.assign(b=np.inf),
    lambda t: t.drop(columns="id"),
    lambda t: t.to_csv(index=False) + f'"{CELL},{ids()[0]}\n',
    lambda t: t.to_csv(index=False) + f"{ids()[0]},1,2,3,{CELL}\n",
    lambda t: "\0" + CELL,
    lambda t: "",
]


def _keep(p: Any, seat: Any, result: Any) -> Any:
    raise KeyError(ids()[0], CELL)


broken = replace(program("vertical-net"), keep=_keep)


def cancel(store: Store) -> None:
    found = until(lambda: [r for r in store.all() if r.state == "running"])
    store.say("cancel", found[-1].job)
