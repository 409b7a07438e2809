"""What each party keeps of a boosted model, and how it is saved: every part apart from the others.

Takes part: each party, about its own part. A part holds this party's bins and splits; the label party's also
the trees' shapes and leaves, the classes and the settings. On disk each part carries the others' digests (see
`protocols.estimator`), so that parts of different runs are not mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protocols.arrays import Array, Arrays
from protocols.estimator import load_parts, save_parts, settings_in
from protocols.parts import Part
from protocols.trees.bins import Bins
from protocols.trees.forest import Forest, Splits
from vfl.boosting.losses import Loss
from vfl.boosting.parts import Learnt, Owned


@dataclass(frozen=True)
class Own:
    """One party's own part. Those of the label party have `target` and `learnt`."""

    id: str
    owned: Owned
    target: str = ""
    learnt: Learnt | None = None

    @property
    def columns(self) -> list[str | int]:
        """The columns that it was trained with."""
        return [one.name for one in self.owned.bins]


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
    bins = own.owned.bins
    about: dict[str, Any] = {
        "id": own.id,
        "columns": [
            {"name": one.name, "thresholds": -1 if one.thresholds is None else len(one.thresholds)}
            | ({"categories": list(one.categories)} if one.is_categorical else {})
            for one in bins
        ],
    }
    thresholds = [one.thresholds for one in bins if one.thresholds is not None]
    codes = [one.codes for one in bins if one.codes is not None]
    arrays: dict[str, Array] = {
        "bins.thresholds": np.concatenate([np.zeros(0), *thresholds]),
        "bins.codes": np.concatenate([np.zeros(0, np.uint8), *codes]),
        **own.owned.splits.arrays(),
    }
    if own.learnt is not None:
        learnt = own.learnt
        about |= {"target": own.target, "classes": learnt.classes, "parties": list(learnt.forest.parties)}
        about |= {"loss": learnt.loss.name, "settings": dict(settings)}
        about |= {"held_out": f"{learnt.held_out:x}"}
        arrays |= {"baseline": learnt.baseline, "scores": learnt.scores, **learnt.forest.arrays()}
    return Part(method, party, about, Arrays(arrays))


def own_of(part: Part) -> Own:
    """What one party kept in `part`."""
    about: Mapping[str, Any] = part.settings
    arrays = part.weights
    bins, place, code = [], 0, 0
    for column in about["columns"]:
        if column["thresholds"] >= 0:
            end = place + column["thresholds"]
            bins.append(Bins(column["name"], arrays["bins.thresholds"][place:end]))
            place = end
        else:
            categories = tuple(column["categories"])
            end = code + len(categories)
            bins.append(Bins(column["name"], categories=categories, codes=arrays["bins.codes"][code:end]))
            code = end
    owned = Owned(tuple(bins), Splits.of(arrays))
    if "settings" not in about:
        return Own(about["id"], owned)
    classes = about["classes"]
    loss = Loss(about["loss"], len(classes) if about["loss"] == "softmax" else 0)
    forest = Forest.of(about["parties"], arrays)
    learnt = Learnt(forest, arrays["baseline"], loss, classes, arrays["scores"], int(about["held_out"], 16))
    return Own(about["id"], owned, about["target"], learnt)
