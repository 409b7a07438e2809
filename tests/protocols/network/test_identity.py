"""A party's name is a DNS name of its certificate, at both ends: what else it says is nobody's name."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from protocols.errors import ConfigError, VflError
from protocols.network.grpc import Grpc
from protocols.network.tls import Credentials
from tests.support.network import (
    HERE,
    SOON,
    bank_party,
    bounded,
    certified,
    hello,
    issued,
    rogue,
    shop_party,
    tell,
    trial,
    unchecked,
)


def common(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def called(kind: str, name: str) -> Credentials:
    """A certificate that has `name` in some place."""
    places: dict[str, list[x509.GeneralName]] = {
        "the common name alone": [],
        "a URI": [x509.UniformResourceIdentifier(name)],
        "an e-mail address": [x509.RFC822Name(name)],
        "a directory name": [x509.DirectoryName(common(name))],
        "a URI beside another DNS name": [x509.DNSName("other"), x509.UniformResourceIdentifier(name)],
        "a DNS name in another case": [x509.DNSName(name.upper())],
        "a part of a DNS name": [x509.DNSName(f"{name}.example"), x509.DNSName(f"*.{name}")],
        "a DNS name": [x509.DNSName("other"), x509.DNSName(name)],
    }
    return issued(trial(), name, *([x509.SubjectAlternativeName(places[kind])] if places[kind] else []))


ELSEWHERE = ["the common name alone", "a URI", "an e-mail address", "a directory name"]
ELSEWHERE += ["a URI beside another DNS name", "a DNS name in another case", "a part of a DNS name"]


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_name_in_any_other_place_lets_nobody_in(kind: str) -> None:
    async def talk() -> None:
        async with shop_party(SOON) as shop:
            status, reason = await rogue(shop.address, [hello()], called(kind, "bank"))
            assert status == "PERMISSION_DENIED"
            assert "by the DNS names in its subjectAltName: nobody in the book of shop" in reason

    bounded(talk())


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_name_in_any_other_place_is_not_the_party_that_is_dialled(kind: str) -> None:
    """gRPC accepts some of these, and then the proof is missing."""

    async def talk() -> None:
        async with (
            Grpc("shop", {"bank": None, "shop": HERE}, unchecked(called(kind, "shop")), limits=SOON) as shop,
            bank_party(shop.address, SOON) as bank,
        ):
            with pytest.raises(VflError, match="has no certificate for shop|does not prove that it holds"):
                await bank.collect("bank", "shop", "talk")
            assert not bank.connected("shop") and not shop.connected("bank")

    bounded(talk())


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_party_is_told_that_its_own_certificate_has_not_its_name(kind: str) -> None:
    with pytest.raises(ConfigError, match="is for .*, not for bank, by the DNS names in its subjectAltName"):
        called(kind, "bank").read("bank")


def test_a_dns_name_counts_wherever_it_stands_among_them() -> None:
    async def talk() -> None:
        book = {"bank": None, "shop": HERE}
        async with (
            Grpc("shop", book, called("a DNS name", "shop"), limits=SOON) as shop,
            Grpc("bank", {**book, "shop": shop.address}, called("a DNS name", "bank"), limits=SOON) as bank,
        ):
            assert await tell(bank, shop, [b"there"]) == [b"there"]

    bounded(talk())


def test_a_party_that_may_only_dial_is_not_dialled() -> None:
    """An extended key usage, where there is one, has to name both."""
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    name = x509.SubjectAlternativeName([x509.DNSName("shop")])

    async def talk() -> None:
        async with (
            Grpc(
                "shop", {"bank": None, "shop": HERE}, issued(trial(), "shop", name, usage), limits=SOON
            ) as shop,
            bank_party(shop.address, SOON) as bank,
        ):
            with pytest.raises(VflError, match="no connection to shop"):
                await bank.collect("bank", "shop", "talk")

    bounded(talk())


def test_whoever_has_two_names_may_be_either() -> None:
    names = x509.SubjectAlternativeName([x509.DNSName("bank"), x509.DNSName("post")])

    async def talk() -> None:
        both = issued(trial(), "both", names)
        book = {"bank": None, "post": None, "shop": HERE}
        async with (
            Grpc("shop", book, certified("shop"), limits=SOON) as shop,
            Grpc("bank", {"bank": None, "shop": shop.address}, both, limits=SOON) as bank,
            Grpc("post", {"post": None, "shop": shop.address}, both, limits=SOON) as post,
        ):
            for one in (bank, post):
                assert await tell(one, shop, [b"there"]) == [b"there"]

    bounded(talk())
