"""TOML files of settings: read, and what is wrong with one in words that quote nothing of it but keys.

Takes part: one party, alone. A value can be a secret (a database's URL holds a password), and pydantic's own
text of an error quotes it; so only the place, the kind of the fault and what was expected are told.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from protocols.errors import ConfigError, nearest

MOST_COLUMNS = 16  # of one id
Names = tuple[Annotated[str, Field(min_length=1)], ...]  # ("*",) stands for all

Place = tuple[int | str, ...]


def read_toml(file: Path) -> dict[str, Any]:
    """The file's content. ConfigError, naming the file, where it cannot be read or is no TOML."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        # Its words name a line and what was expected there; of the text they quote one character, or a key.
        raise ConfigError(f"{file}: is no TOML: {error}") from None


def faults(
    file: Path, error: ValidationError, given: Mapping[str, Any], prefix: str | None = None
) -> ConfigError:
    """Report the first three faults of `given`, a file's content. prefix: of the overriding variables."""
    found = error.errors(include_url=False, include_input=False)
    said = "; ".join(_fault(one, given, prefix) for one in found[:3])
    return ConfigError(f"{file}: {said}" + (f"; and {len(found) - 3} more" if len(found) > 3 else ""))


def _fault(one: ErrorDetails, given: Mapping[str, Any], prefix: str | None) -> str:
    key = [str(one["ctx"]["key"])] if one["type"] == "unknown_key" else []
    place = (*one["loc"], *key)
    words = "is missing" if one["type"] == "missing" else one["msg"].removeprefix("Value error, ")
    if one["type"] not in ("fault", "value_error"):  # pydantic's own sentences
        words = words[:1].lower() + words[1:]
    variable = "" if prefix is None or _holds(given, place) else _variable(place, prefix)
    where = f"{variable} in the environment" if variable else said(place)
    return f"{where}: {words}"


def said(place: Place) -> str:
    """Write a place as a reader counts: `tables.main.id`, `policy 2, peers 1` in the second [[policy]]."""
    text, counted = "", False
    for part in place:
        if isinstance(part, int):
            text, counted = f"{text} {part + 1}", True
        else:
            text, counted = f"{text}{', ' if counted else '.'}{part}", False
    return text.removeprefix(".")


def _holds(given: Any, place: Place) -> bool:
    for part in place:
        try:
            given = given[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _variable(place: Place, prefix: str) -> str:
    """Return the environment variable that set `place` or a section around it; "" if none did."""
    known = {name.upper() for name in os.environ}
    names = (prefix + "__".join(map(str, place[:n])).upper() for n in range(len(place), 0, -1))
    return next((name for name in names if name in known), "")


class Section(BaseModel):
    """A table of a configuration file: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if isinstance(given, dict):
            check_keys(given, cls.model_fields)
        return given


def check_keys(given: Iterable[object], known: Iterable[str]) -> None:
    """Raise an error for the first unknown key, naming the nearest known one."""
    names = tuple(known)
    for key in given:
        if key not in names:
            hint = nearest(str(key), names) or f"; known are {', '.join(names)}"
            raise PydanticCustomError("unknown_key", "unknown key{hint}", {"key": str(key), "hint": hint})


def fault(words: str) -> PydanticCustomError:
    """Describe a fault of a section, in words that follow its place."""
    return PydanticCustomError("fault", "{words}", {"words": words})


def plain(value: Any) -> Any:
    """Replace numpy's numbers by Python's own in a setting, also inside sequences and mappings."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
