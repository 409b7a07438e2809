"""A trial federation is whole: its files fit together, and nothing of an earlier one is lost."""

from __future__ import annotations

import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import ConfigError
from protocols.network.tls import Credentials
from protocols.service.certificates import fingerprint
from protocols.service.config import read_config
from protocols.service.trial import Trial, new_trial, renew

PARTIES = ["bank", "telco", "shop-2"]


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return new_trial(tmp_path / "trial", PARTIES)


def toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text("utf-8"))


def credentials(folder: Path, party: str) -> Credentials:
    """As the book says."""
    said = toml(folder / "parties.toml")["tls"]
    named = (folder / said[file].replace("{me}", party) for file in ("authority", "certificate", "key"))
    return Credentials(*named)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_files_fit_together(trial: Trial) -> None:
    book = toml(trial.folder / "parties.toml")
    assert book["parties"] == trial.book and list(trial.book) == PARTIES
    assert book["tls"]["revoked"] == []
    for party in PARTIES:
        credentials(trial.folder, party).read(party)
        own = toml(trial.config(party))
        assert (own["name"], own["parties"], own["store"]) == (party, "parties.toml", f"{party}-store")
        assert own["tables"] == {"main": {"path": f"{party}.csv", "id": "id"}}
        (rule,) = own["policy"]
        assert rule["peers"] == [other for other in PARTIES if other != party]
        assert (rule["tables"], rule["methods"], rule["consent"]) == (["main"], ["*"], "grant")


def test_every_configuration_can_be_served_as_it_stands(tmp_path: Path) -> None:
    for folder, parties in (("columns", PARTIES), ("rows", ["server", "north", "south"])):
        trial = new_trial(tmp_path / folder, parties)
        for party in parties:
            config, book = read_config(trial.config(party))
            assert config.name == party and [*book.parties] == parties and config.policy
            assert [*config.tables] == ([] if party == "server" else ["main"])


@pytest.mark.parametrize("party", ["bank", "server"])
def test_every_option_that_is_left_out_can_be_put_in(tmp_path: Path, party: str) -> None:
    """Each commented line says what can be meant, once its mark is gone; a query stands instead of a path."""
    file = new_trial(tmp_path / "trial", ["bank", "server"]).config(party)
    text, put_in = file.read_text("utf-8"), []
    for line in text.splitlines():
        if line.startswith("# ") and " = " in line:
            option = line.removeprefix("# ")
            put_in.append(option.split(" = ")[0])
            text = text.replace(line, option)
    tables = ["columns", "url_env", "query"] if party == "bank" else []
    times = ["longest_job_hours", "longest_silence_minutes", "retention_days"]
    assert put_in == ["listen", "log", *times, *tables, "protocols", "expires"]
    for out in (("url_env", "query"), ("path",)):
        file.write_text("\n".join(line for line in text.splitlines() if not line.startswith(out)))
        config, _ = read_config(file)
        assert config.listen and config.retention_days and config.policy[0].expires
        assert all(source.columns for source in config.tables.values())


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_each_party_gets_a_free_port_of_its_own(tmp_path: Path, taken: int, host: str) -> None:
    book = new_trial(tmp_path, PARTIES, host=host, port=taken).book
    ports = [int(address.removeprefix(f"{host}:")) for address in book.values()]
    assert len({*ports}) == 3 and ports == sorted(ports) and ports[0] > taken


def test_a_host_elsewhere_is_taken_at_its_word(tmp_path: Path) -> None:
    book = new_trial(tmp_path, ["bank", "shop"], host="192.0.2.7", port=7443).book
    assert book == {"bank": "192.0.2.7:7443", "shop": "192.0.2.7:7444"}


def test_one_party_may_only_dial(tmp_path: Path) -> None:
    trial = new_trial(tmp_path, PARTIES, dial_only=["telco"])
    assert toml(tmp_path / "parties.toml")["parties"]["telco"] == trial.book["telco"] == ""
    assert trial.book["bank"] and trial.book["shop-2"]


def test_nothing_is_written_over_unless_asked(trial: Trial, tmp_path: Path) -> None:
    before = content(trial.folder)
    with pytest.raises(ConfigError, match=r"holds parties\.toml, authority\.pem, authority\.key already;"):
        new_trial(trial.folder, ["other", "another"])
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "bank.key").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds bank\.key already;"):
        new_trial(tmp_path / "half", PARTIES)
    assert content(trial.folder) == before
    assert content(tmp_path / "half") == {"bank.key": b"precious"}
    new_trial(trial.folder, PARTIES, replace=True)
    after = content(trial.folder)
    assert after.keys() == before.keys() and after["authority.key"] != before["authority.key"]
    for party in PARTIES:
        credentials(trial.folder, party).read(party)


def test_renewing_touches_one_party_only(trial: Trial) -> None:
    before = content(trial.folder)
    old = fingerprint(trial.folder / "telco.pem")
    assert renew(trial.folder, "telco") == old
    after = content(trial.folder)
    assert {name for name in after if after[name] != before[name]} == {"telco.pem", "telco.key"}
    credentials(trial.folder, "telco").read("telco")
    assert fingerprint(trial.folder / "telco.pem") != old


def test_what_cannot_be_renewed_is_refused(trial: Trial, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'telko' is not in .*; there are: bank, telco, shop-2; did you"):
        renew(trial.folder, "telko")
    with pytest.raises(ConfigError, match=r"No such file.*; `vfl certs .*none NAMES` makes one"):
        renew(tmp_path / "none", "telco")
    (trial.folder / "parties.toml").write_text("[tls]")
    with pytest.raises(ConfigError, match=r"is no book: expected TOML with a section \[parties\]"):
        renew(trial.folder, "telco")


@pytest.mark.parametrize(
    ("parties", "more", "said"),
    [
        (["bank"], {}, "at least 2 parties, got 1"),
        (["bank", "Bank"], {}, "Bank is named twice, or as bank in another case"),
        (["bank", "a b"], {}, "cannot name a party on a network"),
        (["bank", "parties"], {}, "file of the trial's own"),
        (["bank", "authority"], {}, "file of the trial's own"),
        (PARTIES, {"dial_only": ["shop"]}, "'shop' can only dial, but is no party; did you mean 'shop-2'"),
        (PARTIES, {"dial_only": ["bank", "telco"]}, "bank and telco could not reach each other"),
        (PARTIES, {"port": 0}, "port 0 should be from 1 to 65535"),
        (PARTIES, {"host": "192.0.2.7", "port": 65534}, "too few free ports on 192.0.2.7"),
        (PARTIES, {"host": "a b"}, "is no address"),
        (PARTIES, {"days": 0.0}, "should be above 0"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    tmp_path: Path, parties: list[str], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        new_trial(tmp_path / "trial", parties, **more)
    assert not (tmp_path / "trial").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"authority\.key cannot be written: "):
        new_trial(tmp_path / "file" / "trial", PARTIES)
