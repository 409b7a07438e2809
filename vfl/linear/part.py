"""A fitted linear model on disk, every party's part apart from the others.

Takes part: each party, about its own part. A part holds this party's standardisation and coefficients; the
label party's also the intercept, the classes and the settings. On disk each part carries the digests of the
others (see `protocols.estimator`), so that parts of different runs are not mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protocols.arrays import Array, Arrays
from protocols.data.tables import scaler_arrays, scaler_in
from protocols.estimator import load_parts, save_parts, settings_in
from protocols.parts import Part
from vfl.linear.parts import Head, Linear


@dataclass(frozen=True)
class Own:
    """One party's own part. Those of the label party have `target` and `head`."""

    id: str
    columns: list[str]
    fitted: Linear
    label_party: str
    peers: tuple[str, ...]  # all feature parties
    target: str = ""
    head: Head | None = None


def save(
    store: Path, run: str | None, method: str, owns: Mapping[str, Own], settings: Mapping[str, Any]
) -> str:
    """Write every party's part to `<store>/<party>/<run>/`; returns the run's id."""
    parts = {party: part_of(method, party, own, settings) for party, own in owns.items()}
    return save_parts(store, run, parts)


def load(store: Path, run: str, method: str) -> tuple[dict[str, Any], dict[str, Own]]:
    """What `save` wrote: the settings, and every party's part.

    Raises ConfigError for what is not there, DataError for what is damaged or does not belong together.
    """
    parts = load_parts(store, run, method)
    return settings_in(run, parts), {party: own_of(part) for party, part in parts.items()}


def part_of(method: str, party: str, own: Own, settings: Mapping[str, Any]) -> Part:
    """One party's own, for its store. `settings` go with the label party's."""
    about: dict[str, Any] = {"id": own.id, "columns": own.columns}
    about |= {"label_party": own.label_party, "peers": [*own.peers]}
    arrays: dict[str, Array] = {"coef": own.fitted.coef, **scaler_arrays("scaler", own.fitted.scaler)}
    if own.head is not None:
        head = own.head
        told = {name: [*v] if isinstance(v, tuple | list) else v for name, v in settings.items()}
        about |= {"target": own.target, "classes": head.classes, "settings": told}
        about |= {"steps": head.steps, "converged": head.converged, "held_out": f"{head.held_out:x}"}
        arrays |= {"intercept": head.intercept, "losses": np.array(head.losses, np.float64)}
        arrays |= scaler_arrays("target", head.scaler)
    return Part(method, party, about, Arrays(arrays))


def own_of(part: Part) -> Own:
    """What one party kept in `part`."""
    about: Mapping[str, Any] = part.settings
    arrays = part.weights
    scaler = scaler_in("scaler", arrays)
    assert scaler is not None
    fitted, columns = Linear(scaler, arrays["coef"]), list(about["columns"])
    parties = about["label_party"], tuple(about["peers"])
    if "settings" not in about:
        return Own(about["id"], columns, fitted, *parties)
    head = Head(
        intercept=arrays["intercept"],
        classes=about["classes"],
        scaler=scaler_in("target", arrays),
        steps=about["steps"],
        converged=about["converged"],
        losses=arrays["losses"].tolist(),
        held_out=int(about["held_out"], 16),
    )
    return Own(about["id"], columns, fitted, *parties, about["target"], head)
