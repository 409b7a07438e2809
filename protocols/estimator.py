"""What estimators of all paradigms share: the parts of one run saved and loaded together.

Takes part: every party of a run, in one process. Each part holds the digests of the others, so that parts of
different trainings are not put together; a digest is all that one party's part says of another's.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sklearn.exceptions import NotFittedError as _SklearnNotFitted

from protocols.errors import ConfigError, DataError, VflError, marked
from protocols.parts import Part, digest, load_part, save_part


def save_parts(store: Path, run: str | None, parts: Mapping[str, Part]) -> str:
    """Write every party's part as `<store>/<party>/<run>`, each with the digests of all others.

    Returns the run's id, drawn if none is given. Each part is written whole or not at all; errors as of
    `save_part`.
    """
    run = run or secrets.token_hex(8)
    digests = {party: digest(part) for party, part in parts.items()}
    for party, part in parts.items():
        others = {peer: said for peer, said in digests.items() if peer != party}
        save_part(store / party, run, replace(part, others=others))
    return run


def load_parts(store: Path, run: str, method: str, parties: Iterable[str] | None = None) -> dict[str, Part]:
    """The parts of `parties`, or of all that took part in the run, in the order of their names.

    Raises ConfigError for a part that is not there or of another method, DataError for one that is damaged
    or of another training; each says whose.
    """
    wanted = _parties(store, run) if parties is None else tuple(parties)
    parts: dict[str, Part] = {}
    for party in wanted:
        with marked(party, "load"):
            parts[party] = load_part(store / party, run)
            if parts[party].method != method:
                raise ConfigError(f"run {run!r} is of {parts[party].method}, expected {method}")
    digests = {party: digest(part) for party, part in parts.items()}
    for party, part in parts.items():
        with marked(party, "load"):
            if parties is None and (missing := [peer for peer in part.others if peer not in parts]):
                raise ConfigError(f"the part of {missing[0]} in run {run!r} is missing")
            for peer, found in digests.items():
                if peer != party and part.others.get(peer) != found:
                    raise DataError(f"run {run!r}: the part of {peer} is not of the same training")
    return parts


def settings_in(run: str, parts: Mapping[str, Part]) -> dict[str, Any]:
    """What the estimator was made with. DataError unless one part, the label party's, says it."""
    told: list[Any] = [part.settings["settings"] for part in parts.values() if "settings" in part.settings]
    if len(told) != 1:
        raise DataError(f"{len(told)} parts of run {run!r} are a label party's, expected one")
    return dict(told[0])


def _parties(store: Path, run: str) -> tuple[str, ...]:
    found = sorted(path.parent.parent.name for path in store.glob(f"*/{run}/part.json"))
    if not found:
        raise ConfigError(f"run {run!r} is at no party in {store}")
    return tuple(found)


class NotFittedError(VflError, _SklearnNotFitted):  # type: ignore[misc]  # sklearn has no stubs
    """`predict` was called before `fit`."""
