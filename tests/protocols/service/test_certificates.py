"""The trial authority: what it issues, what it refuses, and what a party is told about its own files."""

from __future__ import annotations

import re
import shlex
import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from protocols.errors import ConfigError
from protocols.network.tls import Credentials, check_address, is_loopback, names, network_name
from protocols.service.certificates import fingerprint, new_authority, new_party
from tests.support import ROOT
from tests.support.waiting import HANG


@pytest.fixture
def bank(tmp_path: Path) -> Credentials:
    new_authority(tmp_path / "ca")
    return new_party(tmp_path / "bank", tmp_path / "ca", "bank")


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_authority_certifies_a_party_and_nobody_further(bank: Credentials) -> None:
    authority, party = certificate(bank.authority), certificate(bank.certificate)
    party.verify_directly_issued_by(authority)
    constraints = [c.extensions.get_extension_for_class(x509.BasicConstraints) for c in (authority, party)]
    assert [c.critical for c in constraints] == [True, True]
    assert [(c.value.ca, c.value.path_length) for c in constraints] == [(True, 0), (False, None)]
    assert not party.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    purposes = party.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_a_certificate_names_the_party_and_this_machine(bank: Credentials) -> None:
    found = certificate(bank.certificate)
    assert names(found) == ["bank", "localhost"]
    assert isinstance(found.public_key(), ec.EllipticCurvePublicKey)
    assert isinstance(found.public_key().curve, ec.SECP256R1)  # type: ignore[union-attr]


def test_certificates_last_as_long_as_asked(tmp_path: Path) -> None:
    new_authority(tmp_path, days=3)
    short = certificate(new_party(tmp_path, tmp_path, "shop", days=0.5).certificate)
    left = short.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(hours=11.9) < left <= timedelta(hours=12)
    assert short.not_valid_before_utc < datetime.now(UTC)
    with pytest.raises(ConfigError, match=r"days=0 should be above 0"):
        new_party(tmp_path, tmp_path, "bank", days=0)


def test_only_the_owner_may_read_a_key(bank: Credentials) -> None:
    for key in (bank.key, bank.authority.with_suffix(".key")):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sorted(path.name for path in bank.key.parent.iterdir()) == ["bank.key", "bank.pem"]


def test_nothing_is_overwritten_unless_asked(tmp_path: Path, bank: Credentials) -> None:
    before = bank.key.read_bytes()
    with pytest.raises(ConfigError, match=r"bank\.pem exists"):
        new_party(tmp_path / "bank", tmp_path / "ca", "bank")
    with pytest.raises(ConfigError, match=r"authority\.pem exists"):
        new_authority(tmp_path / "ca")
    assert bank.key.read_bytes() == before
    renewed = new_party(tmp_path / "bank", tmp_path / "ca", "bank", replace=True)
    assert renewed == bank and bank.key.read_bytes() != before
    bank.read("bank")


@pytest.mark.parametrize(
    "name", ["", "a.b", "../x", "a b", "-a", "a-", "localhost", "LocalHost", "é", "x" * 64, 7]
)
def test_names_that_no_certificate_can_carry_are_refused(name: object) -> None:
    with pytest.raises(ConfigError, match="cannot name a party on a network"):
        network_name(name)


@pytest.mark.parametrize("name", ["a", "bank", "Bank_2", "shop-7", "7", "x" * 63])
def test_names_that_certificates_carry(name: str) -> None:
    assert network_name(name) == name


def test_a_party_cannot_take_the_authoritys_files(tmp_path: Path) -> None:
    new_authority(tmp_path)
    with pytest.raises(ConfigError, match="authority's own files"):
        new_party(tmp_path, tmp_path, "authority", replace=True)


def test_no_party_without_an_authority(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make one first"):
        new_party(tmp_path, tmp_path, "bank")
    new_authority(tmp_path)
    (tmp_path / "authority.key").write_text("no key")
    with pytest.raises(ConfigError, match="cannot be read"):
        new_party(tmp_path, tmp_path, "bank")


def swap(bank: Credentials, **files: Path) -> Credentials:
    held = {"authority": bank.authority, "certificate": bank.certificate, "key": bank.key}
    return Credentials(**{**held, **files})


def test_a_party_is_told_what_is_wrong_with_its_own_files(tmp_path: Path, bank: Credentials) -> None:
    bank.read("bank")
    shop = new_party(tmp_path / "shop", tmp_path / "ca", "shop")
    other = new_authority(tmp_path / "other")
    text = tmp_path / "text"
    text.write_text("no certificate")
    text.chmod(0o600)
    for wrong, reason in [
        (swap(bank, key=shop.key), r"shop\.key is not the key of .*bank\.pem"),
        (shop, r"is for shop, localhost, not for bank"),
        (swap(bank, authority=other), r"was not issued by .*other"),
        (swap(bank, certificate=text), "no PEM certificate"),
        (swap(bank, key=text), "no PEM private key"),
        (swap(bank, key=tmp_path / "none"), "none: No such file"),
    ]:
        with pytest.raises(ConfigError, match=rf"bank/certificates: .*{reason}"):
            wrong.read("bank")


def test_an_expired_certificate_names_the_clock(tmp_path: Path, bank: Credentials) -> None:
    # A billionth of a day is over before the file is written.
    over = new_party(tmp_path / "over", tmp_path / "ca", "bank", days=1e-9)
    with pytest.raises(ConfigError, match=r"is valid from .* this machine's clock says"):
        over.read("bank")


def test_the_commands_of_the_guide_make_a_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to run the guide's commands with")
    guide = (ROOT / "docs" / "guides" / "certificates.md").read_text("utf-8")
    authority = new_authority(tmp_path)
    monkeypatch.chdir(tmp_path)
    request, sign, show = (
        subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=HANG)
        for line in re.findall(r"^openssl .*", guide.replace("\\\n", ""), flags=re.MULTILINE)
    )
    assert request.returncode == 0, request.stderr
    if "copy_extensions" in sign.stderr:
        pytest.skip("this openssl is older than 3.0")
    assert sign.returncode == 0, sign.stderr
    files = Credentials(authority, tmp_path / "telco.pem", tmp_path / "telco.key")
    found = certificate(files.certificate)
    assert files.read("telco") and names(found) == ["telco"]
    purposes = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    shown = show.stdout.partition("=")[2].strip().replace(":", "").lower()
    assert shown == fingerprint(files.certificate)


def test_a_fingerprint_is_of_a_certificate(tmp_path: Path, bank: Credentials) -> None:
    with pytest.raises(ConfigError, match=r"bank\.key is no PEM certificate"):
        fingerprint(bank.key)
    with pytest.raises(ConfigError, match=r"none: No such file"):
        fingerprint(tmp_path / "none")


def test_what_was_read_does_not_show_itself(bank: Credentials) -> None:
    assert repr(bank.read("bank")) == "Material(...)"


def test_addresses() -> None:
    for address in ("bank.example:7443", "127.0.0.1:0", "[::1]:65535"):
        assert check_address(address) == address
    for address in ("bank.example", "bank:", ":7443", "unix:/x", "a:65536", "dns:///a:1", "a b:1"):
        with pytest.raises(ConfigError, match="is no address"):
            check_address(address)
    assert all(is_loopback(a) for a in ("127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1"))
    assert not any(is_loopback(a) for a in ("0.0.0.0:1", "10.0.0.1:1", "bank.example:1", "[::]:1"))
