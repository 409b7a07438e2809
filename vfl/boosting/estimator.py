"""Boosted trees over columns of several parties behind scikit-learn's `fit` and `predict`.

Takes part: the party that the target names (the label party) and every other party in the mapping. Who
learns what: see `vfl.align`, `vfl.boosting` and `vfl.boosting.predict`; `ledger_` lists every message of a
training run and what it reveals. Semi-honest parties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, d2_tweedie_score, r2_score

from protocols.arrays import Array
from protocols.data.tables import Kind, column
from protocols.errors import ConfigError, marked, nearest
from protocols.federation import Federation
from protocols.hazmat.paillier import Paillier, Plain
from protocols.learning.training import check_network
from protocols.programs import Program, Seat
from protocols.psi.choose import check_protocol
from protocols.psi.ids import Normalise, check_rules
from vfl.base import Data, Vertical, weights_of
from vfl.boosting import part
from vfl.boosting.parameters import Boosting, PredictProtocol, encryption_fields, encryption_of
from vfl.boosting.part import Own
from vfl.boosting.parts import Learnt
from vfl.boosting.program import owned, plain_program, program, told

PAILLIER = Paillier()
# Of the parameters: what each party has by itself, or what is told in other words.
_NOT_TOLD = ("encryption", "monotone", "warm_start", "unmatched", "random_state")


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
    duplicates, normalise, protocol, unmatched: as of `VerticalNetClassifier`.
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
    duplicates: Literal["error", "first"] = "error"
    normalise: Normalise = ()
    protocol: Literal["auto", "ecdh", "kkrt"] = "auto"
    unmatched: Literal["drop", "nan"] = "drop"
    random_state: int = 0

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
        own: Own = self._fit(federation, target, id, sample_weight)
        assert own.learnt is not None
        self._set_learnt(own.learnt)
        return self

    def save(self, store: str | Path, run: str | None = None) -> str:
        """Write each party's own part to `<store>/<party>/<run>/`; returns the run's id.

        Of a model that was trained over a network it is this party's part alone, and `run` the training's.
        Settings go with the label party's part, all but `monotone`, which names columns. What happened
        (`ledger_`, `alignment_`) is not saved.
        """
        parts, plain = self._fitted(), {"unmatched": self.unmatched, "random_state": self.random_state}
        parameters = self._parameters(self.label_party_, self.parties_)
        return part.save(
            Path(store), self._saved_as(run), type(self).__name__, parts, {**told(parameters), **plain}
        )

    @classmethod
    def load(cls, store: str | Path, run: str) -> Self:
        """What `save` wrote, ready to predict.

        Raises ConfigError for a run that is not there, DataError for parts that are damaged or do not
        belong together.
        """
        settings, parts = part.load(Path(store), run, cls.__name__)
        known = {name: value for name, value in settings.items() if name in cls._get_param_names()}
        loaded = cls(
            **{**known, "encryption": encryption_of(settings), "normalise": tuple(settings["normalise"])}
        )
        loaded.parts_, loaded.run_ = parts, run
        loaded.label_party_, learnt = next((party, own.learnt) for party, own in parts.items() if own.learnt)
        loaded.parties_ = learnt.forest.parties
        loaded._set_learnt(learnt)
        return loaded

    def _owned(self, parameters: Boosting, seat: Seat, held: Any) -> Own:
        return owned(parameters, seat, held)

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

    def _set_learnt(self, learnt: Learnt) -> None:
        """Attributes of a fitted estimator."""
        forest = learnt.forest
        self.n_iter_ = learnt.rounds
        self.validation_loss_ = learnt.scores
        self.is_plain_ = self._program is plain_program
        gains = np.bincount(forest.owner[forest.owner >= 0], forest.gain[forest.owner >= 0])
        every = np.zeros(len(forest.parties))
        every[: len(gains)] = gains
        self.party_importances_ = pd.Series(every / (every.sum() or 1.0), index=forest.parties, name="gain")
        self.feature_importances_ = {party: _importances(own) for party, own in self.parts_.items()}

    @property
    def _learnt(self) -> Learnt:
        learnt = self._fitted()[self.label_party_].learnt
        assert isinstance(learnt, Learnt)
        return learnt

    def _response(self, data: Data) -> tuple[Data, Array, Array]:
        """(federation, probabilities or expected values (k, outputs), the label party's rows (k,))."""
        federation, raw, rows = self._outputs(data)
        return federation, self._learnt.loss.response(raw), rows

    def _truth(self, federation: Data, rows: Array, sample_weight: object) -> tuple[pd.Series, Array | None]:
        """The labels of the rows that were predicted, and their weights, in the label party's order."""
        if self.label_party_ not in federation:
            raise ConfigError(f"the label is at {self.label_party_}, whose table is not here")
        table, order = federation[self.label_party_], np.sort(rows)
        with marked(self.label_party_, "score"):
            target = column(table, self.parts_[self.label_party_].target, "target")
        weights = None if sample_weight is None else weights_of(sample_weight, len(table))[order]
        return target.iloc[order], weights

    def _parameters(self, owner: str, parties: Sequence[str], *, may_be_empty: bool = False) -> Boosting:
        check_network((), True, self.random_state)
        check_protocol(self.protocol, False, len(parties))
        encryption = encryption_fields(self.encryption)
        settings = {name: value for name, value in self.get_params().items() if name not in _NOT_TOLD}
        parameters: Boosting = self._program.read(
            {
                **{name: v.item() if isinstance(v, np.generic) else v for name, v in settings.items()},
                **encryption,
                "label_party": owner,
                "kind": self._kind,
                "normalise": check_rules(self.normalise),
                "begin": self.n_iter_ if self._goes_on else 0,
                "may_be_empty": may_be_empty,
            }
        )
        return parameters


class VerticalGradientBoostingClassifier(ClassifierMixin, _VerticalGradientBoosting):
    """Boosted trees for classification; see its base for the parameters.

    Two classes have one tree a round (logistic loss), more have one each (softmax).
    """

    _kind = "classification"

    def predict(self, data: Data) -> pd.Series:
        """The likeliest class of each row, indexed by id, in the label party's row order.

        data: every party's table, aligned anew; the target is not looked at. Sets `predict_alignment_` and
        `predict_ledger_`. Raises ConfigError where a party is missing, else as `fit`.
        """
        federation, chances, rows = self._response(data)
        values = self.classes_[chances.argmax(axis=1)]
        return self._placed(federation, rows, pd.Series(values, name=self.parts_[self.label_party_].target))

    def predict_proba(self, data: Data) -> pd.DataFrame:
        """Each row's probability of each class (columns are `classes_`); otherwise as `predict`."""
        federation, chances, rows = self._response(data)
        return self._placed(federation, rows, pd.DataFrame(chances, columns=list(self.classes_)))

    def score(self, data: Data, sample_weight: object = None) -> float:
        """The accuracy over the rows that all parties have; the label party's table holds the target."""
        federation, chances, rows = self._response(data)
        predicted = self.classes_[chances[np.argsort(rows)].argmax(axis=1)]
        truth, weights = self._truth(federation, rows, sample_weight)
        return float(accuracy_score(truth.to_numpy(), predicted, sample_weight=weights))

    def _set_learnt(self, learnt: Learnt) -> None:
        super()._set_learnt(learnt)
        self.classes_ = np.asarray(learnt.classes)


@dataclass(kw_only=True, eq=False, repr=False)
class VerticalGradientBoostingRegressor(RegressorMixin, _VerticalGradientBoosting):
    """Boosted trees for regression; see its base for the other parameters.

    loss: "squared", or "poisson" for counts (log link).
    """

    _kind = "regression"

    loss: Literal["squared", "poisson"] = "squared"

    def predict(self, data: Data) -> pd.Series:
        """The expected value of each row, indexed by id, in the label party's row order.

        data: every party's table, aligned anew; the target is not looked at. Sets `predict_alignment_` and
        `predict_ledger_`. Raises ConfigError where a party is missing, else as `fit`.
        """
        federation, values, rows = self._response(data)
        name = self.parts_[self.label_party_].target
        return self._placed(federation, rows, pd.Series(values[:, 0], name=name))

    def score(self, data: Data, sample_weight: object = None) -> float:
        """R^2, or of counts D^2 (the share of the Poisson deviance that is explained), over the rows that all
        parties have; the label party's table holds the target."""
        federation, values, rows = self._response(data)
        truth, weights = self._truth(federation, rows, sample_weight)
        numbers, predicted = truth.to_numpy(np.float64), values[np.argsort(rows), 0]
        if self.loss == "poisson":
            return float(d2_tweedie_score(numbers, predicted, sample_weight=weights, power=1))
        return float(r2_score(numbers, predicted, sample_weight=weights))


def _importances(own: Own) -> pd.Series:
    """The share of each of a party's columns in its splits, weighed by the rows that reached them."""
    splits = own.owned.splits
    found = np.bincount(splits.column, splits.rows, minlength=len(own.columns))
    return pd.Series(found / (found.sum() or 1.0), index=own.columns, name="rows split")
