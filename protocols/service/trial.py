"""A federation on one laptop: certificates, the book of addresses, and a configuration for each party.

For trying out. One person makes and holds everything here, the authority's key too, and so can be any party;
each party's policy grants the others everything. Between organisations each makes its own files, and
docs/guides/certificates.md says how.
"""

from __future__ import annotations

import errno
import socket
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocols.errors import ConfigError, nearest
from protocols.learning.clients import SERVER
from protocols.network.tls import check_address, network_name
from protocols.service.certificates import AUTHORITY, fingerprint, new_authority, new_party, put

BOOK = "parties.toml"
FIRST_PORT = 7001


@dataclass(frozen=True)
class Trial:
    """The files written into `folder`. book: party -> address, "" for one that can only dial."""

    folder: Path
    book: dict[str, str]

    def config(self, party: str) -> Path:
        """The party's own file, for `vfl serve`."""
        return self.folder / f"{party}.toml"


def new_trial(
    folder: Path,
    parties: Sequence[str],
    *,
    host: str = "localhost",
    port: int = FIRST_PORT,
    dial_only: Collection[str] = (),
    days: float = 90.0,
    replace: bool = False,
) -> Trial:
    """Make an authority, and for each party a certificate, a place in the book and a configuration.

    host: where all of them listen, each on a port of its own, from `port` on those that are free. dial_only:
    parties that listen nowhere. days: how long the certificates hold. ConfigError, with nothing written, for
    names that cannot be meant, and for files that are there already, unless `replace`.
    """
    folder = Path(folder)
    _check(parties, dial_only)
    if not days > 0:
        raise ConfigError(f"days={days!r} should be above 0")
    book = _addresses(parties, host, port, dial_only)
    trial = Trial(folder, book)
    names = [BOOK, f"{AUTHORITY}.pem", f"{AUTHORITY}.key"]
    names += [f"{party}.{suffix}" for party in parties for suffix in ("pem", "key", "toml")]
    there = [name for name in names if (folder / name).exists()]
    if there and not replace:
        raise ConfigError(
            f"{folder} holds {', '.join(there[:4])}{' and more' if len(there) > 4 else ''} already; choose "
            "another folder, renew one party's certificate with --renew, or write anew with --replace"
        )
    new_authority(folder, days=max(365.0, days), replace=replace)
    for party in parties:
        new_party(folder, folder, party, days=days, replace=replace)
        others = [other for other in parties if other != party]
        put(trial.config(party), _config(party, others).encode(), 0o644)
    put(folder / BOOK, _book(book).encode(), 0o644)
    return trial


def renew(folder: Path, party: str, *, days: float = 90.0) -> str:
    """Make a new key and certificate for `party`; return the fingerprint of the old certificate.

    A running party takes them up at its next handshake. ConfigError if `party` is not in the folder's book.
    """
    place = Path(folder) / BOOK
    try:
        known = list(tomllib.loads(place.read_text("utf-8"))["parties"])
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}; `vfl certs {folder} NAMES` makes one") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{place} is no book: expected TOML with a section [parties]") from None
    if party not in known:
        raise ConfigError(
            f"{party!r} is not in {place}; there are: {', '.join(known)}{nearest(party, known)}"
        )
    before = fingerprint(Path(folder) / f"{party}.pem")
    new_party(folder, folder, party, days=days, replace=True)
    return before


def _check(parties: Sequence[str], dial_only: Collection[str]) -> None:
    if len(parties) < 2:
        raise ConfigError(f"a federation has at least 2 parties, got {len(parties)}")
    folded: dict[str, str] = {}
    for party in parties:
        name = network_name(party).casefold()
        if name in (AUTHORITY, Path(BOOK).stem):
            raise ConfigError(f"{party!r} is the name of a file of the trial's own; choose another")
        if name in folded:
            raise ConfigError(f"{party} is named twice, or as {folded[name]} in another case")
        folded[name] = party
    for party in dial_only:
        if party not in parties:
            raise ConfigError(f"{party!r} can only dial, but is no party{nearest(party, parties)}")
    if len(set(dial_only)) > 1:
        raise ConfigError(
            f"{' and '.join(dict.fromkeys(dial_only))} could not reach each other: of any two parties one "
            "has to listen"
        )


def _addresses(parties: Sequence[str], host: str, port: int, dial_only: Collection[str]) -> dict[str, str]:
    if not 1 <= port <= 65535:
        raise ConfigError(f"port {port} should be from 1 to 65535")
    check_address(f"{host}:{port}")
    free = (number for number in range(port, 65536) if _is_free(host, number))
    book: dict[str, str] = {}
    for party in parties:
        if party in dial_only:
            book[party] = ""
            continue
        number = next(free, None)
        if number is None:
            raise ConfigError(f"too few free ports on {host} from {port} on for {len(parties)} parties")
        book[party] = f"{host}:{number}"
    return book


def _is_free(host: str, port: int) -> bool:
    """Return whether nobody listens there, as far as can be seen from this machine."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError:
        return True  # the name may mean something where the party will run
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
    return True


def _book(book: Mapping[str, str]) -> str:
    lines = "\n".join(f'{party} = "{address}"' for party, address in book.items())
    return f"""\
# The book of a federation: the same for all its parties. Paths are relative to this file.

[parties]                      # name = "host:port", or "" for a party that can only dial
{lines}

[tls]                          # {{me}} is replaced by the party's own name
authority = "{AUTHORITY}.pem"    # the certificate of the authority that all parties trust
certificate = "{{me}}.pem"       # each party's certificate
key = "{{me}}.key"               # and its key, which no other party ever sees
revoked = []                   # SHA-256 fingerprints of certificates that count no longer, in hexadecimal
"""


def _config(party: str, others: Sequence[str]) -> str:
    # The party without data of FedAvg and split learning serves no table.
    table, tables = ("", "") if party == SERVER else (_table(party), 'tables = ["main"]\n')
    peers = ", ".join(f'"{other}"' for other in others)
    return f"""\
# For `vfl serve {party}.toml`. Paths are relative to this file.

name = "{party}"  # as in the book, and in the certificate
parties = "{BOOK}"  # the book: who takes part, where they are, where the certificates lie
store = "{party}-store"  # a folder of this party's own: jobs, parts of models, the ledger
# listen = "0.0.0.0:7001"  # where it is not the address in the book, as behind a forwarded port
# log = "info"  # or debug, warning, error
# longest_job_hours = 24  # what holds this party for longer ends with an error
# longest_silence_minutes = 30  # that a job may only wait for a peer, while another caller waits for its turn
# retention_days = 365  # older parts and ended jobs are deleted by `vfl parts delete --expired`, run at times

{table}# What others may do. The first rule that names a job's peer, table and method decides; a job that none
# names is refused. This one grants everything that this version's networks need, which is for trials only.
[[policy]]
peers = [{peers}]
{tables}methods = ["*"]  # or names, as in ["vertical-linear"]; docs/guides/network.md has all
actions = ["fit", "predict", "align"]
columns = ["*"]  # or the names of those that jobs may use
show_columns = true  # FedAvg and split learning name the column of the label
consent = "grant"  # or "ask": each job waits for `vfl approve`
consent_predict = "grant"  # the same for predictions
allow_plain = true  # embeddings, gradients and updates may leave in the clear
# protocols = ["ecdh", "kkrt"]  # KKRT is faster for large sets, and shows a peer that cheats all ids: psi.md
# expires = 2027-01-01  # nothing is granted from that day on
# What else a rule can limit (ids, rows, predictions, parameters), with its defaults: docs/guides/policy.md
"""


def _table(party: str) -> str:
    variable = party.upper().replace("-", "_")
    return f"""\
[tables.main]  # a table that jobs can name; there may be several
path = "{party}.csv"  # replace by your own: .csv or .parquet
id = "id"  # the column that tells rows apart, or for alignments a list of those that do so together
# columns = ["age", "income"]  # all that methods may use; without it, all but the id
# Instead of a path, one query of a database, whose address is in the environment:
# url_env = "{variable}_DATABASE"
# query = "select id, age, income from customers"

"""
