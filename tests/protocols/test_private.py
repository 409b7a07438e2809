"""Nobody but its owner reads what a party keeps, and a key that others can read is none."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocols.errors import ConfigError
from protocols.files import make_folder
from protocols.parts import list_parts
from protocols.service.caller import Connected
from protocols.service.certificates import new_authority, new_party
from protocols.service.config import read_config
from protocols.service.jobs import HOLDS
from protocols.service.store import Store
from tests.support.networked import POLICY, columns
from tests.support.served import Process, lay_out
from vfl import VerticalNetClassifier, align

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there are no such modes")
CLOSED = (0o700, 0o600)  # folders, files


@contextmanager
def unmasked() -> Iterator[None]:
    """A process that leaves every new file open to all, unless it says something else."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(folder: Path) -> dict[str, str]:
    paths = [folder, *folder.rglob("*")]
    return {str(path): oct(mode(path)) for path in paths if mode(path) & 0o077}


def test_all_that_parties_keep_of_their_jobs_is_their_owners_and_so_it_is_made_again(tmp_path: Path) -> None:
    tables = {party: table for party, table in columns(80).items() if party != "shop"}
    book = lay_out(tmp_path, tables, POLICY + 'protocols = ["ecdh", "unbalanced"]\n')
    stores = [tmp_path / f"{party}-store" for party in tables]
    model = VerticalNetClassifier(epochs=1, batch_size=32, random_state=1)
    telco = Process(tmp_path / "telco.toml", umask=0)
    try:
        with unmasked(), Connected(book, "bank", tables["bank"], patience=60.0) as all_:
            model.fit(all_, target="bank.y", id="id")
            model.predict_proba(all_)
            align(all_, id="id", label_party="bank", protocol="unbalanced")
        telco.stop()
        kept = {path.name for store in stores for path in store.iterdir()}
        assert kept >= {"jobs", "parts", "_history", "unbalanced", "ledger.jsonl", "status.json"}
        assert kept <= set(HOLDS)
        assert not any(map(open_to_others, stores)), list(map(open_to_others, stores))

        for path in (path for store in stores for path in [store, *store.rglob("*")]):
            path.chmod(mode(path) | 0o055)
        telco.start()
        with Connected(book, "bank", tables["bank"], patience=60.0) as all_:
            model.predict_proba(all_)
        assert not any(map(open_to_others, stores)), list(map(open_to_others, stores))
        telco.stop()
    finally:
        telco.kill()


def test_what_is_made_is_closed_up_to_the_first_folder_that_was_there(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with unmasked():
        make_folder(tmp_path / "a" / "b" / "c")
        make_folder(tmp_path / "a" / "b" / "c")
    assert mode(tmp_path) == 0o755
    assert all(mode(tmp_path / folder) == 0o700 for folder in ("a", "a/b", "a/b/c"))


def test_of_what_is_beside_a_store_nothing_changes(tmp_path: Path) -> None:
    """A store may be a folder that holds other things, and a link in it may lead anywhere."""
    (tmp_path / "store" / "jobs").mkdir(parents=True)
    (tmp_path / "outside").write_text("")
    (tmp_path / "store" / "mine.txt").write_text("")
    (tmp_path / "store" / "jobs" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "store" / "parts").symlink_to(tmp_path)
    for path in (tmp_path / "outside", tmp_path / "store" / "mine.txt", tmp_path):
        path.chmod(0o755)
    Store(tmp_path / "store").secure()
    assert mode(tmp_path / "store") == mode(tmp_path / "store" / "jobs") == 0o700
    assert mode(tmp_path) == mode(tmp_path / "outside") == mode(tmp_path / "store" / "mine.txt") == 0o755


def test_a_store_that_cannot_be_closed_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On some file systems a change of mode does nothing, and elsewhere it is refused."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts").chmod(0o755)

    def refuse(self: Path, mode: int) -> None:
        raise PermissionError("not the owner")

    for chmod in (refuse, lambda self, mode: None):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "chmod", chmod)
            with pytest.raises(
                ConfigError, match=r"parts can be read by others \(mode 0755\) and we may not"
            ):
                Store(tmp_path).secure()


KEYS = [(True, 0o600, ""), (True, 0o400, ""), (True, 0o640, "go-rwx"), (True, 0o604, "go-rwx")]
KEYS += [(False, 0o440, ""), (False, 0o640, ""), (False, 0o644, "o-rwx"), (False, 0o604, "o-rwx")]


@pytest.mark.parametrize(("mine", "mode", "advice"), KEYS)
def test_a_key_that_others_can_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mine: bool, mode: int, advice: str
) -> None:
    """Of somebody else's file, the group may be how it was given to us, as in a container."""
    new_authority(tmp_path)
    bank = new_party(tmp_path, tmp_path, "bank")
    bank.key.chmod(mode)
    if not mine:
        monkeypatch.setattr(os, "geteuid", lambda: bank.key.stat().st_uid + 1)
    if advice:
        with pytest.raises(ConfigError, match=rf"bank/certificates: .*`chmod {advice} .*bank\.key`"):
            bank.read("bank")
    else:
        assert bank.read("bank").key == bank.key.read_bytes()


def test_an_authority_whose_key_others_can_read_certifies_nobody(tmp_path: Path) -> None:
    new_authority(tmp_path)
    (tmp_path / "authority.key").chmod(0o644)
    with pytest.raises(ConfigError, match=r"authority\.key can be read by others \(mode 0644\)"):
        new_party(tmp_path, tmp_path, "bank")


def test_a_party_whose_key_others_can_read_is_not_served(tmp_path: Path) -> None:
    lay_out(tmp_path, {"bank": None, "telco": None})
    (tmp_path / "telco.key").chmod(0o644)
    telco = Process(tmp_path / "telco.toml")
    assert telco.ended() == 2
    assert "telco.key can be read by others (mode 0644), so it is not used" in telco.said


def test_keys_and_the_folder_that_is_made_for_them_are_closed(tmp_path: Path) -> None:
    with unmasked():
        lay_out(tmp_path / "new", {"bank": None, "telco": None})
    for name in ("authority.key", "bank.key", "telco.key"):
        assert mode(tmp_path / "new" / name) == 0o600
    assert mode(tmp_path / "new") == 0o700
    assert not list_parts(read_config(tmp_path / "new" / "bank.toml")[0].store)
