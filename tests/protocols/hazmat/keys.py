"""Fixed test keys. They are published here, so they protect nothing."""

from __future__ import annotations

from functools import cache

from gmpy2 import next_prime
from phe import PaillierPrivateKey, PaillierPublicKey

from protocols.hazmat.paillier import PaillierKey
from protocols.hazmat.paillier.keys import Backend

P512 = 0xEE09CD2BEAA7D5472E7CFB90C721A02FC8437C6CA8693C288A9A8B2FABDBBE68B426F56025DC6993075E6F7AD1398B59546E8C5979F619F07EFC636BA1B47DC5  # noqa: E501
Q512 = 0xCC9A1334EA66F578DD026D58F2DE722496FC56C8B97B42CBE995436B3A3AC5DDEB46C5A7E2C2BE1A8A1E657DC48557B3658CB9EB262967D4F96C582F705D947B  # noqa: E501
P1024 = 0xD7AA63C5D65DA030AA1C0B1584DB70406ADAAA253A96C47A7EB4AC4F2235DF118FA9A846741D777096EE314C95A48F6C5EA793288A5EF8E9D5D9363B29D2E9BA2771554BE7A813B0925E44543AF011AF4ED979A64EE688FF7850A2C1DD46BE33E97321DA93A207963D91D87AB99C47AD57243B890D6322764143798BDF6995E9  # noqa: E501
Q1024 = 0xCFB203EDBF798C20F0DDD5509D53029B0E59E6A0EC5D2C9594F168A2D836B862C611BCB2FE204F824978F8E1FA587AF54D16C39B80B6D91CC8A0A2CEF36F188E091BDCCEFE042D4A34F11E6FC6689275BDDB00D4164E77B25941ECFF903807494641B175E43FF00F41A870E10E4933B1B5D42D8DCEDA915670739A4CE1C41A6B  # noqa: E501
BACKENDS: tuple[Backend, ...] = ("gmpy2", "ifma", "fma")


def phe_pair(p: int, q: int) -> tuple[PaillierPublicKey, PaillierPrivateKey]:
    public = PaillierPublicKey(p * q)
    return public, PaillierPrivateKey(public, p, q)


@cache
def small(backend: Backend = "gmpy2") -> PaillierKey:
    """1024 bits, for speed."""
    return PaillierKey(*phe_pair(P512, Q512), backend=backend, small_key=True)


@cache
def usual(backend: Backend = "gmpy2") -> PaillierKey:
    """2048 bits."""
    return PaillierKey(*phe_pair(P1024, Q1024), backend=backend)


@cache
def other() -> PaillierKey:
    """1024 bits, and not `small`."""
    return PaillierKey(*phe_pair(P512, int(next_prime(Q512))), small_key=True)
