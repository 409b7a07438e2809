"""Boosted trees over columns of several parties behind scikit-learn's `fit` and `predict`.

Takes part: the party that the target names (the label party) and every other party in the mapping. Who
learns what: see `vfl.align`, `vfl.boosting` and `vfl.boosting.predict`; `ledger_` lists every message of a
training run and what it reveals. Semi-honest parties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd

from protocols.arrays import Array
from protocols.data.tables import Kind
from protocols.errors import ConfigError, nearest
from protocols.federation import Federation
from protocols.hazmat.paillier import Paillier, Plain
from protocols.learning.training import check_network
from protocols.programs import Program
from protocols.scores import EXPLAINED, Scoring
from vfl.base import Data, Vertical, VerticalClassifier, VerticalRegressor
from vfl.boosting.parameters import PredictProtocol, encryption_fields
from vfl.boosting.part import Own
from vfl.boosting.parts import Learnt
from vfl.boosting.program import METHODS, owned, plain_program, program

PAILLIER = Paillier()


@dataclass(kw_only=True, eq=False, repr=False)
class _VerticalGradientBoosting(Vertical):
    """What the classifier and the regressor share.

    Columns may be numbers, with gaps, or categories: pandas' category, text, or truth values. Missing values
    go the way that helps most at each split; categories that no training row had count as missing.

    Parameters
    ----------
    n_estimators: rounds; each grows one tree, or with more than two classes one for each class.
    learning_rate: what each tree's values are multiplied by.
    max_depth: levels of splits.
    max_bins: how many bins each party divides a column into, from 2 to 255.
    l2_regularization: what is added to a leaf's hessian.
    min_child_weight: the least hessian of a leaf. min_samples_leaf: its least rows, and those of a category
        that is told apart at a split; others' policies refuse fewer than their `min_group`.
        min_samples_split: the least rows of a node that is split; no histogram is asked of fewer. min_gain:
        what a split has to gain.
    subsample: the share of rows that a round learns from. colsample: the share of all columns.
    top_rate, other_rate: GOSS. Rows with the largest gradients are always drawn (top_rate of all), and
        other_rate of all from the rest, with more weight. It shows feature parties which rows these are.
    complete_secure: whether the first round is grown from the label party's columns alone.
    early_stopping: whether to hold out `validation_fraction` of the common rows, end training once their loss
        has not fallen by more than `tol` for `n_iter_no_change` rounds, and keep the rounds until the best.
    monotone: {party: {column: 1 or -1}}: the prediction may only rise (1) or fall (-1) with that column. Over
        a network each party says this of its own columns in its configuration.
    gradient_bits: of the integers that gradients and hessians are rounded to.
    encryption: `Paillier(bits=...)`, or `Plain()` to encrypt nothing: both of `protocols.hazmat.paillier`.
    predict_protocol: "levels" or "bitmask"; see `vfl.boosting.predict` for who learns what.
    warm_start: whether `fit` goes on from the last one, up to `n_estimators` rounds in all.
    duplicates, normalise, protocol, unmatched: see `Vertical`.
    random_state: in one process, the seed of the rows and columns that are drawn, and of the rows held out,
        which are the same again where `warm_start` goes on. Over a network it is not used: the label party
        draws them from a seed of its own. Keys come from the operating system.

    Attributes
    ----------
    n_iter_ (rounds that are kept), validation_loss_ (after each round; empty without early stopping),
    feature_importances_ ({party: of its columns, a Series}, of the parties whose parts are here: the share of
    its splits, weighed by the rows that reached them), party_importances_ (each party's share of all gain, a
    Series), is_plain_ (whether gradients could be read by others).
    """

    _owned, _kept = staticmethod(owned), Own
    _methods, _not_saved = METHODS, ("monotone",)  # which names others' columns
    _not_told = (*Vertical._not_told, "encryption", "monotone", "warm_start")
    _kind: ClassVar[Kind]

    n_estimators: int = 100
    learning_rate: float = 0.1
    max_depth: int = 5
    max_bins: int = 32
    l2_regularization: float = 1.0
    min_child_weight: float = 1.0
    min_samples_leaf: int = 10
    min_samples_split: int = 20
    min_gain: float = 0.0
    subsample: float = 1.0
    colsample: float = 1.0
    top_rate: float = 0.0
    other_rate: float = 0.0
    complete_secure: bool = False
    early_stopping: bool = False
    validation_fraction: float = 0.1
    n_iter_no_change: int = 10
    tol: float = 0.0
    monotone: Mapping[str, Mapping[str, int]] | None = None
    gradient_bits: int = 16
    encryption: Paillier | Plain = PAILLIER
    predict_protocol: PredictProtocol = "levels"
    warm_start: bool = False

    @property
    def _program(self) -> Program[Any]:  # type: ignore[override]  # which one follows from the parameters
        plain = self.encryption.is_plain or bool(getattr(self.encryption, "small_key", False))
        return plain_program if plain else program

    def fit(self, data: Data, target: str, id: str | Mapping[str, str], sample_weight: object = None) -> Self:
        """Align the parties' tables and train on the rows that all of them have.

        data: party -> table with an id column and features, or a federation. target: "party.column"; that
        party is the label party, and needs no features. id: the id column, or {party: its id column}; it is
        no feature. sample_weight: a number for each row of the label party's table, within the bounds of
        `vfl.weights`.

        Sets `alignment_` (who matched how many rows), `ledger_` (what was sent), `parts_` (what each party
        keeps). Raises ConfigError for settings and names, DataError for tables, AlignmentError for ids that
        do not meet; each says at which party.
        """
        federation = Federation.of(data)
        self._check_monotone(federation)
        self._fit(federation, target, id, sample_weight)
        return self

    def _everybody(self, own: Own) -> Sequence[str]:
        return self._learnt.forest.parties

    def _brought(self, party: str, owner: str) -> dict[str, Any]:
        brought: dict[str, Any] = {"monotone": dict((self.monotone or {}).get(party, {}))}
        return brought | ({"kept": self.parts_.get(party)} if self._goes_on else {})

    def _from(self) -> str:
        return self.run_ if self._goes_on else ""

    @property
    def _goes_on(self) -> bool:
        return bool(self.warm_start) and hasattr(self, "parts_")

    def _check_monotone(self, federation: Data) -> None:
        told = self.monotone or {}
        if not isinstance(told, Mapping) or not all(isinstance(ways, Mapping) for ways in told.values()):
            raise ConfigError(f"monotone={told!r} should be {{party: {{column: 1 or -1}}}}")
        for party in told:
            if party not in federation:
                here = ", ".join(federation)
                raise ConfigError(
                    f"monotone names {party!r}, whose columns are not here (here: {here})"
                    f"{nearest(party, federation)}; over a network each party configures its own"
                )

    def _set_learnt(self, own: Own) -> None:
        learnt = self._learnt
        forest = learnt.forest
        self.n_iter_ = learnt.rounds
        self.validation_loss_ = learnt.scores
        self.is_plain_ = self._program is plain_program
        gains = np.bincount(forest.owner[forest.owner >= 0], forest.gain[forest.owner >= 0])
        every = np.zeros(len(forest.parties))
        every[: len(gains)] = gains
        self.party_importances_ = pd.Series(every / (every.sum() or 1.0), index=forest.parties, name="gain")
        self.feature_importances_ = {party: _importances(one) for party, one in self.parts_.items()}

    @property
    def _learnt(self) -> Learnt:
        learnt = self._fitted()[self.label_party_].learnt
        assert isinstance(learnt, Learnt)
        return learnt

    def _response(self, outputs: Array) -> Array:
        return self._learnt.loss.response(outputs)

    def _told(self) -> dict[str, Any]:
        check_network((), True, self.random_state)
        begin = self.n_iter_ if self._goes_on else 0
        return {"kind": self._kind, "begin": begin, **encryption_fields(self.encryption)}


class VerticalGradientBoostingClassifier(VerticalClassifier, _VerticalGradientBoosting):
    """Boosted trees for classification; see its base for the parameters.

    Two classes have one tree a round (logistic loss), more have one each (softmax).
    """

    _kind = "classification"

    def _set_learnt(self, own: Own) -> None:
        super()._set_learnt(own)
        self.classes_ = np.asarray(self._learnt.classes)


@dataclass(kw_only=True, eq=False, repr=False)
class VerticalGradientBoostingRegressor(VerticalRegressor, _VerticalGradientBoosting):
    """Boosted trees for regression; see its base for the other parameters.

    loss: "squared", or "poisson" for counts (log link).
    """

    _kind = "regression"

    loss: Literal["squared", "poisson"] = "squared"

    def _usual_scoring(self) -> Scoring:
        return EXPLAINED if self.loss == "poisson" else "r2"


def _importances(own: Own) -> pd.Series:
    """The share of each of a party's columns in its splits, weighed by the rows that reached them."""
    splits = own.owned.splits
    found = np.bincount(splits.column, splits.rows, minlength=len(own.columns))
    return pd.Series(found / (found.sum() or 1.0), index=own.columns, name="rows split")
