"""Vertical networks behind scikit-learn's `fit` and `predict`.

Takes part: the party that the target names (the label party) and every other party in the mapping. Who
learns what: see `vfl.align` and `vfl.network.roles`; `ledger_` lists every message of a training run and what
it reveals. Semi-honest parties; no defence against what gradients and embeddings give away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from torch import nn

from protocols.arrays import Array
from protocols.data.tables import Kind
from protocols.errors import ConfigError, nearest
from protocols.learning.training import Settings, check_network, probabilities
from protocols.parts import Part
from vfl.base import Data, Vertical, VerticalClassifier, VerticalRegressor
from vfl.network.parameters import VerticalNet
from vfl.network.part import Own, own_of
from vfl.network.program import METHODS, owned, program
from vfl.network.roles import Top


@dataclass(kw_only=True, eq=False, repr=False)
class _VerticalNet(Vertical):
    """What the classifier and the regressor share.

    Parameters
    ----------
    bottoms: {party: module (b, its columns) -> float32 (b, k)}, copied; parties that it does not name get a
        linear layer and ReLU.
    top: module (b, all k together) -> (b, outputs), copied; by default linear layers with ReLU between them.
        Outputs are one per class, or one for regression.
    hidden: hidden[0] units are divided among the parties by their number of columns, at least one each, and
        are the width of all default embeddings together; hidden[1:] are the top model's layers.
    epochs, batch_size, learning_rate, optimizer ("adam" or "sgd"), momentum (of sgd), weight_decay: of every
        party's own optimizer.
    standardise: whether each party standardises its columns on the common training rows.
    duplicates, normalise, protocol, unmatched: see `Vertical`.
    random_state: in one process, the seed of weights, batches and dropout. Over a network it is not used:
        each party draws them from a seed of its own, which no other knows, and no two runs are the same.
        Alignment draws its secrets from the operating system.
    """

    _program, _methods = program, METHODS
    _owned, _kept = staticmethod(owned), Own
    _not_told = (*Vertical._not_told, "bottoms", "top")
    _kind: ClassVar[Kind]

    bottoms: Mapping[str, nn.Module] | None = None
    top: nn.Module | None = None
    hidden: Sequence[int] = (64, 32)
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    standardise: bool = True

    def fit(self, data: Data, target: str, id: str | Mapping[str, str]) -> Self:
        """Align the parties' tables and train on the rows that all of them have.

        data: party -> table with an id column and numeric features, or a federation. target:
        "party.column"; that party is the label party, and needs no features. id: the id column, or {party:
        its id column}; it is no feature. Tables are checked as a whole, also rows that turn out unmatched.

        Sets `alignment_` (who matched how many rows), `ledger_` (what was sent), `parts_` (what each party
        keeps). Raises ConfigError for settings and names, DataError for tables, AlignmentError for ids that
        do not meet; each says at which party.
        """
        self._fit(data, target, id)
        return self

    @classmethod
    def load(
        cls,
        store: str | Path,
        run: str,
        *,
        bottoms: Mapping[str, nn.Module] | None = None,
        top: nn.Module | None = None,
    ) -> Self:
        """What `save` wrote, ready to predict. Modules that were brought must be brought again.

        Raises ConfigError for a run or module that is not there, DataError for parts that are damaged or
        do not belong together.
        """
        return cls._loaded(store, run, bottoms=bottoms, top=top)

    def _recall(self, part: Part) -> Own:
        return own_of(part, (self.bottoms or {}).get(part.party), self.top)

    def _everybody(self, own: Own) -> Sequence[str]:
        return (self.label_party_, *self._top.widths)

    def _brought(self, party: str, owner: str) -> dict[str, Any]:
        brought = {"bottom": (self.bottoms or {}).get(party), "top": self.top if party == owner else None}
        return {"modules": {part: module for part, module in brought.items() if module is not None}}

    @property
    def _top(self) -> Top:
        top = self._fitted()[self.label_party_].top
        assert isinstance(top, Top)
        return top

    def _parameters(self, owner: str, parties: Sequence[str], *, may_be_empty: bool = False) -> VerticalNet:
        alien = [party for party in self.bottoms or {} if party not in parties]
        if alien:
            known = ", ".join(parties)
            raise ConfigError(
                f"bottoms name {', '.join(alien)}; parties are {known}{nearest(alien[0], parties)}"
            )
        for name, module in {**(self.bottoms or {}), "top": self.top}.items():
            if module is not None and not isinstance(module, nn.Module):
                raise ConfigError(f"{name}: expected a torch module, got {type(module).__name__}")
        parameters: VerticalNet = super()._parameters(owner, parties, may_be_empty=may_be_empty)
        parameters.check()
        return parameters

    def _told(self) -> dict[str, Any]:
        check_network(self.hidden, self.standardise, self.random_state)
        Settings.of(self, self._kind, self.epochs)
        return {"kind": self._kind, "hidden": tuple(self.hidden), "standardise": bool(self.standardise)}


class VerticalNetClassifier(VerticalClassifier, _VerticalNet):
    """A vertical network for classification; see its base for the parameters."""

    _kind = "classification"

    def _set_learnt(self, own: Own) -> None:
        self.classes_ = np.asarray(self._top.classes)

    def _response(self, outputs: Array) -> Array:
        return probabilities(outputs)


class VerticalNetRegressor(VerticalRegressor, _VerticalNet):
    """A vertical network for regression; see its base for the parameters.

    The label party standardises the target on the common training rows, and undoes it when predicting.
    """

    _kind = "regression"

    def _response(self, outputs: Array) -> Array:
        scaler = self._top.scaler
        assert scaler is not None
        return scaler.inverse(outputs)
