"""Checks that all that a policy names exists: methods and parameters, and columns of the tables.

Takes part: one party, alone, before it serves; nothing here leaves it. A misspelt method covers no job, also
none that its rule was to refuse, and a misspelt parameter bounds nothing: neither would be noticed otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocols.data.sources import usable_columns
from protocols.errors import ConfigError, VflError, marked, nearest
from protocols.logs import log
from protocols.policy.rules import ANY, Rule, has
from protocols.programs import program, registered
from protocols.service.config import PartyConfig


def check_names(config: PartyConfig) -> None:
    """Raise ConfigError, marked with the party, for the first name in the policy that does not exist.

    A table that cannot be read now is logged, and its columns are not looked for.
    """
    with marked(config.name, "configuration"):
        usable = {table: _usable(config, table) for table in config.tables}
        for at, rule in enumerate(config.policy, start=1):
            _check_methods(f"policy {at}", rule)
            _check_columns(f"policy {at}", rule, config, usable)


def _check_methods(where: str, rule: Rule) -> None:
    known = registered()
    for key, names in (("methods", rule.methods), ("parameters", rule.parameters)):
        for name in names:
            if name not in (*known, ANY):
                raise _unknown(f"{where}, {key}", f"no method {name!r} is registered here", name, known)
    for method, bounds in rule.parameters.items():
        named = [name for name in known if has(rule.methods, name)] if method == ANY else [method]
        fields = _fields(named)
        for name in bounds:
            if fields is not None and name not in fields:
                of = method if method != ANY else "the rule's methods"
                said = f"there is no parameter {name!r} of {of}"
                raise _unknown(f"{where}, parameters.{method}", said, name, fields)


def _fields(methods: Iterable[str]) -> list[str] | None:
    """Return all parameters of these methods, or None if one of the methods cannot be imported."""
    try:
        return [name for method in methods for name in program(method).parameters.model_fields]
    except Exception as error:
        log.warning("request failed", exc_info=error)
        return None


def _check_columns(where: str, rule: Rule, config: PartyConfig, usable: dict[str, list[str] | None]) -> None:
    """Check the columns that the policy names. usable: each table's columns, None for an unreadable one."""
    names = [name for name in rule.columns if name != ANY]
    tables = [table for table in config.tables if has(rule.tables, table)]
    found = [usable[table] for table in tables]
    known = [name for columns in found for name in columns or ()]
    for name in names:
        if tables and name not in known and None not in found:
            said = f"there is no column {name!r} that methods may use in {', '.join(tables)}"
            raise ConfigError(f"{where}, columns: {said}{nearest(name, known)}")


def _usable(config: PartyConfig, table: str) -> list[str] | None:
    try:
        return usable_columns(config.tables[table], config.base)
    except VflError as error:
        log.warning("table not read", extra={"table": table}, exc_info=error)
        return None


def _unknown(where: str, said: str, name: str, known: Iterable[str]) -> ConfigError:
    names = list(dict.fromkeys(known))
    return ConfigError(f"{where}: {said}; there are {', '.join(names)}{nearest(name, names)}")
