"""Halves of an algorithm with their settings, as values that travel by a registered name.

Takes part: whoever starts a run, and every party that is told. No code crosses: a peer that has no half of
that name refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from horizontal.rules import ClientRule, ServerRule
from protocols.errors import ConfigError, nearest
from protocols.learning.training import Settings

GROUP = "vfl.algorithms"


class Choice(BaseModel):
    """One end of an algorithm, by the settings that it has of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    name: ClassVar[str]  # as registered
    slot: ClassVar[str]  # the parameter that it is a value of


class ClientChoice(Choice):
    """What clients do."""

    slot = "algorithm"

    def rule(self, settings: Settings) -> ClientRule[Any]:
        """The rule, for the settings that all networks have. ConfigError for those that do not fit."""
        raise NotImplementedError


class ServerChoice(Choice):
    """What the server makes of the clients' mean."""

    slot = "server"

    def rule(self) -> ServerRule[Any]:
        """The rule."""
        raise NotImplementedError


C = TypeVar("C", bound=Choice)


def chosen(kind: type[C], said: object) -> C:
    """A `kind` from its name, from {"name": ..., settings}, or as it is. ConfigError for anything else."""
    if isinstance(said, kind):
        return said
    name, settings = _parted(said)
    found = {other: entry for other, entry in registered().items() if issubclass(entry.load(), kind)}
    if name not in found:
        known = ", ".join(found)
        raise ConfigError(f"{kind.slot}={name!r} should be one of {known}{nearest(str(name), found)}")
    try:
        made: C = found[name].load().model_validate(settings)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ConfigError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return made


def told(choice: Choice) -> dict[str, Any]:
    """What crosses of it: its name and settings."""
    return {"name": choice.name, **choice.model_dump(mode="json")}


@cache
def registered() -> Mapping[str, EntryPoint]:
    """All names, and where each is."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def _parted(said: object) -> tuple[object, Mapping[str, Any]]:
    if not isinstance(said, Mapping):
        return said, {}
    return said.get("name"), {key: value for key, value in said.items() if key != "name"}


# Of a program's parameters. ConfigError is a ValueError, whose words pydantic keeps.
ChosenClient = Annotated[ClientChoice, BeforeValidator(partial(chosen, ClientChoice)), PlainSerializer(told)]
ChosenServer = Annotated[ServerChoice, BeforeValidator(partial(chosen, ServerChoice)), PlainSerializer(told)]
