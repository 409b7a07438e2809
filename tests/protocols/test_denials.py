"""Whatever one peer does, the others are served: by `vfl serve` over mutual TLS, within about a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch

from protocols.config import Parties
from protocols.connect import Connected
from tests.protocols.networked import POLICY, columns
from tests.protocols.served import Process, lay_out
from tests.protocols.wire.network import hello, rogue
from vfl import VerticalNetClassifier

SOON = 1.0  # seconds that a peer which breaks the rules may cost the others
RULE = 'peers = ["bank", "mill"]'


def tables() -> dict[str, pd.DataFrame | None]:
    found = columns()
    return {"bank": found["bank"], "mill": found["bank"], "telco": found["telco"]}


class Served:
    """`telco` as a process; `bank` calls it as it should, `mill` does not."""

    def __init__(self, folder: Path, granted: bool) -> None:
        self.folder = folder
        whole = lay_out(folder, tables(), POLICY)
        self.book = folder / "two.toml"  # as the bank has it, which asks the telco alone
        self.book.write_text("\n".join(x for x in whole.read_text().splitlines() if not x.startswith("mill")))
        self.config = folder / "telco.toml"
        if not granted:
            self.config.write_text(self.config.read_text().replace(RULE, 'peers = ["bank"]'))
        self.telco = Process(self.config)
        self.parties = Parties.read(self.book)
        self.address = self.parties.book["telco"]
        self.bank = Connected(self.book, "bank", tables()["bank"], patience=20.0)
        self.usual = self.serve()
        self.usual = self.serve()

    def serve(self) -> float:
        """Seconds that a whole job of the bank's takes."""
        begin = time.monotonic()
        VerticalNetClassifier(epochs=1, batch_size=64, random_state=1).fit(
            self.bank, target="bank.y", id="id"
        )
        return time.monotonic() - begin

    def ill(self, *frames: bytes, session: bytes = b"r" * 16) -> tuple[str, str]:
        """What the mill is told that says `frames` after its Hello."""
        said = [hello(party="mill", peer="telco", session=session), *frames]
        return asyncio.run(rogue(self.address, said, self.parties.credentials("mill"), "telco"))


@contextmanager
def serving(folder: Path, granted: bool) -> Iterator[Served]:
    torch.set_num_threads(1)
    served = Served(folder, granted)
    try:
        yield served
    finally:
        served.bank.close()
        served.telco.stop()


def test_one_bad_frame(tmp_path: Path) -> None:
    with serving(tmp_path, granted=False) as served:
        print("usual", served.usual)
        assert served.ill(b"\xff\xff\xff")[0] == "INVALID_ARGUMENT"
        took = served.serve()
        print(took)
        assert took < 3 * served.usual + SOON
