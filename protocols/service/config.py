"""What one organisation says of itself and of its peers, in two TOML files.

Takes part: one party, alone; nothing here leaves it. `<party>.toml` is its own: its tables, its store, its
policy (`PartyConfig`). `parties.toml` is the book that all parties of a federation have alike (`Parties`).
`read_config` reads both and holds them against each other. Paths in a file are relative to it.

An environment variable overrides a key of `<party>.toml`: VFL_STORE, or VFL_TABLES__MAIN__URL for one
inside a section; an empty one does not, and one of another name is not read. Two things are never overridden:
the policy, since the file is what reviewers read, and the book, since a party with another one could not be
talked to. Secrets (a database's URL) are in no repr and in no error, and may stay in the environment
(`url_env`). Every fault is a ConfigError that names the file, the place and the nearest valid name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from protocols.data.sources import TableSource
from protocols.errors import ConfigError, nearest
from protocols.network.tls import Credentials, check_address, is_loopback, network_name
from protocols.policy.rules import ANY, Rule, has
from protocols.settings import Section, check_keys, fault, faults, read_toml

PREFIX = "VFL_"
_TABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")  # it names a file of the store


class Tls(Section):
    """The places of the three files that prove who a party is, and the certificates that are revoked."""

    authority: str  # paths; {me} is replaced by the party's name
    certificate: str
    key: str
    revoked: tuple[str, ...] = ()  # SHA-256 fingerprints of certificates, hex; colons and case do not matter

    @field_validator("revoked")
    @classmethod
    def _fingerprints(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        plain = tuple(one.replace(":", "").lower() for one in given)
        if not all(re.fullmatch(r"[0-9a-f]{64}", one) for one in plain):
            raise fault("should be SHA-256 fingerprints, 64 hexadecimal digits each")
        return plain


class Parties(Section):
    """The book: who takes part, where they are, and how they prove it."""

    parties: Annotated[dict[str, str], Field(min_length=1)]  # name -> "host:port"; "" can only dial
    tls: Tls | None = None  # without it: insecure, on loopback only
    _base: Path = PrivateAttr(default=Path())

    @field_validator("parties")
    @classmethod
    def _addresses(cls, given: dict[str, str]) -> dict[str, str]:
        folded: dict[str, str] = {}
        for name, address in given.items():
            # A certificate's names are compared without regard to case by those who dial.
            if folded.setdefault(network_name(name).casefold(), name) != name:
                raise fault(f"{name} and {folded[name.casefold()]} differ in case only; rename one")
            if address:
                check_address(address)
        return given

    @classmethod
    def read(cls, file: Path) -> Parties:
        """Read the book from a file. Raises ConfigError for any fault in it."""
        given = read_toml(file)
        try:
            found = cls.model_validate(given)
        except ValidationError as error:
            raise faults(file, error, given) from None
        found._base = file.absolute().parent
        return found

    @property
    def book(self) -> dict[str, str | None]:
        """Party name -> address, or None for one that can only dial, in the file's order."""
        return {name: address or None for name, address in self.parties.items()}

    @property
    def revoked(self) -> frozenset[str]:
        """SHA-256 fingerprints of certificates that are no longer believed: lower-case hex, no colons."""
        return frozenset(self.tls.revoked if self.tls else ())

    def credentials(self, me: str) -> Credentials | None:
        """The files of party `me`, absolute; None where the book says nothing of TLS."""
        if self.tls is None:
            return None
        said = (self.tls.authority, self.tls.certificate, self.tls.key)
        return Credentials(*(self._base / path.replace("{me}", me) for path in said))


class PartyConfig(BaseSettings):
    """One organisation's own file. Its repr holds no secret."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    name: str
    parties: Path  # parties.toml; absolute once read
    store: Path  # parts, jobs, ledgers and histories; absolute once read
    tables: dict[str, TableSource] = {}  # none at a party without data, as the server of FedAvg
    policy: tuple[Rule, ...] = ()  # the first that covers a job decides; none: refused
    listen: str | None = None  # where it differs from the book
    insecure: bool = False  # no TLS, on loopback only
    log: Literal["debug", "info", "warning", "error"] = "info"
    retention_days: Annotated[int, Field(ge=1)] | None = None  # None: nothing expires
    longest_job_hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 24.0  # from its turn to its end
    # That a job which runs may do nothing but wait for a peer, while another caller waits.
    longest_silence_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    _base: Path = PrivateAttr(default=Path())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override the file."""
        return env_settings, init_settings

    @field_validator("name")
    @classmethod
    def _nameable(cls, name: str) -> str:
        return network_name(name)

    @field_validator("listen")
    @classmethod
    def _address(cls, listen: str | None) -> str | None:
        return listen and check_address(listen)

    @field_validator("tables")
    @classmethod
    def _file_names(cls, tables: dict[str, TableSource]) -> dict[str, TableSource]:
        for name in tables:
            if not _TABLE.fullmatch(name):
                raise fault(
                    f"{name!r} should be 1 to 63 letters, digits, '-' and '_', the first no '-' or '_'"
                )
        if len({name.casefold() for name in tables}) < len(tables):
            raise fault("two tables' names differ in case only; rename one")
        return tables

    @classmethod
    def read(cls, file: Path) -> PartyConfig:
        """Read the configuration from a file and the environment. Raises ConfigError for any fault in it."""
        given = read_toml(file)
        base = file.absolute().parent
        if overridden := [name for name in os.environ if name.upper().startswith(f"{PREFIX}POLICY")]:
            raise ConfigError(f"{overridden[0]} in the environment: the policy is read from {file} alone")
        try:
            # Not left to pydantic-settings, which takes some keys for settings of its own.
            check_keys(given, cls.model_fields)
            found = cls(**given)
        except PydanticCustomError as error:
            raise ConfigError(f"{file}: {(error.context or {})['key']}: {error.message()}") from None
        except ValidationError as error:
            raise faults(file, error, given, PREFIX) from None
        except SettingsError as error:
            raise ConfigError(f"{error}; a section in the environment is JSON") from None
        found = found.model_copy(update={"parties": base / found.parties, "store": base / found.store})
        found._base = base
        _check_policy(file, found)
        return found

    @property
    def base(self) -> Path:
        """The file's folder, which the tables' paths are relative to."""
        return self._base


def read_config(file: Path) -> tuple[PartyConfig, Parties]:
    """Read a party's own file and the book that it names.

    ConfigError where the book lacks the party or a peer of its policy, or where TLS is neither set up nor
    waived; marked with the party.
    """
    config = PartyConfig.read(file)
    try:
        parties = Parties.read(config.parties)
        _check_together(file, config, parties)
    except ConfigError as error:
        raise error.at(config.name, "configuration") from None
    return config, parties


def _check_together(file: Path, config: PartyConfig, parties: Parties) -> None:
    known = tuple(parties.parties)
    for what, name in [("name", config.name), *_named(config, "peers")]:
        if name not in known:
            raise ConfigError(
                f"{file}: {what}: {name!r} is not in {config.parties.name}; there are: {', '.join(known)}"
                f"{nearest(name, known)}"
            )
    if config.insecure and parties.tls:
        raise ConfigError(f"{file}: insecure = true, but {config.parties.name} has [tls]; drop one of them")
    if not config.insecure and not parties.tls:
        raise ConfigError(f"{config.parties}: [tls] is missing; see vfl certs, or set insecure = true")
    used = [address for address in (*parties.parties.values(), config.listen) if address]
    far = [address for address in used if not is_loopback(address)]
    if config.insecure and far:
        raise ConfigError(f"{file}: insecure = true is for loopback addresses only, not {', '.join(far)}")


def _check_policy(file: Path, config: PartyConfig) -> None:
    """Check the tables and columns that the policy names. `protocols.service.check` checks its methods."""
    for what, table in _named(config, "tables"):
        if table not in config.tables:
            known = ", ".join(config.tables)
            hint = nearest(table, config.tables)
            raise ConfigError(f"{file}: {what}: there is no table {table!r}; there are: {known}{hint}")
    for at, rule in enumerate(config.policy, start=1):
        sources = [source for name, source in config.tables.items() if has(rule.tables, name)]
        usable = [column for source in sources for column in source.columns or ()]
        for column in rule.columns if sources else ():
            if all(column in source.ids for source in sources):
                raise ConfigError(f"{file}: policy {at}, columns: {column!r} is the id, which no job uses")
            if column not in (*usable, ANY) and all(source.columns for source in sources):
                hint = nearest(column, usable)
                raise ConfigError(
                    f"{file}: policy {at}, columns: {column!r} is not among the columns of its tables{hint}"
                )


def _named(config: PartyConfig, key: str) -> list[tuple[str, str]]:
    """Yield each name in the rules' lists called `key`, with its place."""
    rules = enumerate(config.policy, start=1)
    return [(f"policy {at}, {key}", name) for at, rule in rules for name in getattr(rule, key) if name != ANY]
