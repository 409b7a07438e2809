"""Linear models over columns of several parties behind scikit-learn's `fit` and `predict`.

Takes part: the party that the target names (the label party) and every other party in the mapping. Who
learns what: see `vfl.align`, `vfl.linear.roles` and `vfl.linear.hidden`; `ledger_` lists every message of a
training run and what it reveals. Semi-honest parties.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from scipy.special import expit, softmax
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, d2_tweedie_score, r2_score

from protocols.arrays import Array
from protocols.data.tables import column
from protocols.errors import ConfigError, marked
from protocols.hazmat.paillier import Paillier
from protocols.learning.training import check_network
from protocols.programs import Program, Seat
from protocols.psi.choose import check_protocol
from protocols.psi.ids import Normalise, check_rules
from vfl.base import Data, Vertical, weights_of
from vfl.linear import part
from vfl.linear.parameters import Family, Security, Solver, VerticalLinear
from vfl.linear.part import Own
from vfl.linear.parts import Head
from vfl.linear.program import owned, plain_program, program

PAILLIER = Paillier()
_NOT_TOLD = ("encryption", "unmatched", "random_state")  # of the parameters; each party has them by itself


@dataclass(kw_only=True, eq=False, repr=False)
class _VerticalLinear(Vertical):
    """What the estimators share.

    They minimise the mean loss + l2 / 2 |w|^2 + l1 |w|_1 over the common rows, w being the coefficients of
    standardised columns, all but the intercept. So l2 is scikit-learn's 1 / (n C), or its alpha / n of
    Ridge.

    Parameters
    ----------
    l2, l1: how much large coefficients cost.
    solver: "lbfgs" takes all rows at once, and tens of steps; "sgd" takes mini-batches.
    max_iter: steps of "lbfgs", epochs of "sgd".
    tol: "lbfgs" ends where the gradient is not longer than this, in coordinates in which the second
        derivative of each party's part is about 1: the loss could then fall by about tol^2 / 2. Of rare
        classes and events, times as much as the loss curves less.
    batch_size, learning_rate, momentum: of "sgd". A batch has at least batch_size rows.
    security: "exact", "hidden" or "plain"; see the guide for who learns what.
    encryption: the key of those who encrypt, `Paillier(bits=...)`.
    standardise: whether each party standardises its columns on the common training rows.
    early_stopping: whether to hold out `validation_fraction` of the common rows, end training once their
        loss has not improved for `n_iter_no_change` steps, and go back to the best.
    warm_start: whether `fit` starts from the coefficients of the last one.
    duplicates, normalise, protocol, unmatched: as of `VerticalNetClassifier`.
    random_state: in one process, the seed of batches and of the rows held out, which are the same again where
        `warm_start` starts from the last fit. Over a network it is not used: the label party draws them from
        a seed of its own. Keys and masks come from the operating system.

    Attributes
    ----------
    coef_: {party: its coefficients, a Series by column}, of the parties whose parts are here. intercept_,
    n_iter_ (steps or epochs), converged_ (whether tol or early stopping ended it), loss_curve_ (the objective
    before each step and after the last; of "sgd" each epoch's mean loss; empty where nobody knows it),
    is_plain_ (whether what left in training could be read, or its key be broken).
    """

    _family: ClassVar[Family]

    l2: float = 1e-3
    l1: float = 0.0
    solver: Solver = "lbfgs"
    max_iter: int = 100
    tol: float = 1e-6
    batch_size: int = 4096
    learning_rate: float = 0.1
    momentum: float = 0.0
    security: Security = "exact"
    encryption: Paillier = PAILLIER
    standardise: bool = True
    early_stopping: bool = False
    validation_fraction: float = 0.1
    n_iter_no_change: int = 5
    warm_start: bool = False
    duplicates: Literal["error", "first"] = "error"
    normalise: Normalise = ()
    protocol: Literal["auto", "ecdh", "kkrt"] = "auto"
    unmatched: Literal["drop", "nan"] = "drop"
    random_state: int = 0

    @property
    def _program(self) -> Program[Any]:  # type: ignore[override]  # which one follows from the parameters
        return plain_program if self._is_plain else program

    @property
    def _is_plain(self) -> bool:
        return self.security == "plain" or bool(getattr(self.encryption, "small_key", False))

    def fit(self, data: Data, target: str, id: str | Mapping[str, str], sample_weight: object = None) -> Self:
        """Align the parties' tables and train on the rows that all of them have.

        data: party -> table with an id column and numeric features, or a federation. target:
        "party.column"; that party is the label party, and needs no features. id: the id column, or {party:
        its id column}; it is no feature. sample_weight: a number for each row of the label party's table.

        Sets `alignment_` (who matched how many rows), `ledger_` (what was sent), `parts_` (what each party
        keeps). Raises ConfigError for settings and names, DataError for tables, AlignmentError for ids that
        do not meet; each says at which party. Warns where max_iter ended it.
        """
        own: Own = self._fit(data, target, id, sample_weight)
        assert own.head is not None
        self._set_learnt(own.head)
        self.is_plain_ = self._is_plain
        if self.solver == "lbfgs" and not self.converged_ and not self.early_stopping:
            warnings.warn(
                f"{type(self).__name__} took max_iter={self.max_iter} steps without reaching "
                f"tol={self.tol:g}; raise max_iter or l2",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def save(self, store: str | Path, run: str | None = None) -> str:
        """Write each party's own part to `<store>/<party>/<run>/`; returns the run's id.

        Of a model that was trained over a network it is this party's part alone, and `run` the training's.
        Settings go with the label party's part. What happened (`ledger_`, `alignment_`) is not saved.
        """
        settings = {**self.get_params(), "encryption": asdict(self.encryption)}
        parts = self._fitted()
        return part.save(Path(store), self._saved_as(run), type(self).__name__, parts, settings)

    @classmethod
    def load(cls, store: str | Path, run: str) -> Self:
        """What `save` wrote, ready to predict.

        Raises ConfigError for a run that is not there, DataError for parts that are damaged or do not
        belong together.
        """
        settings, parts = part.load(Path(store), run, cls.__name__)
        settings["encryption"] = Paillier(**settings["encryption"])
        loaded = cls(**settings | {"normalise": tuple(settings["normalise"])})
        loaded.parts_, loaded.run_ = parts, run
        loaded.label_party_, learnt = next((party, own.head) for party, own in parts.items() if own.head)
        loaded.parties_ = (loaded.label_party_, *parts[loaded.label_party_].peers)
        loaded._set_learnt(learnt)
        return loaded

    def _owned(self, parameters: VerticalLinear, seat: Seat, held: Any) -> Own:
        return owned(parameters, seat, held)

    def _brought(self, party: str, owner: str) -> dict[str, Any]:
        return {"kept": self.parts_.get(party)} if self._goes_on else {}

    def _from(self) -> str:
        return self.run_ if self._goes_on else ""

    @property
    def _goes_on(self) -> bool:
        return bool(self.warm_start) and hasattr(self, "parts_")

    @property
    def _head(self) -> Head:
        head = self._fitted()[self.label_party_].head
        assert isinstance(head, Head)
        return head

    def _set_learnt(self, head: Head) -> None:
        """Attributes of a fitted estimator."""
        unit = 1.0 if head.scaler is None else float(head.scaler.scale[0])
        shift = 0.0 if head.scaler is None else float(head.scaler.mean[0])
        self.coef_ = {
            party: _by_column(unit * own.fitted.coef, own.columns, head) for party, own in self.parts_.items()
        }
        intercept = unit * head.intercept + shift
        self.intercept_ = intercept if len(intercept) > 1 else float(intercept[0])
        self.n_iter_, self.converged_ = head.steps, head.converged
        self.loss_curve_ = list(head.losses)

    def _truth(self, federation: Data, rows: Array) -> pd.Series:
        """The labels of the rows that were predicted, in the label party's order."""
        if self.label_party_ not in federation:
            raise ConfigError(f"the label is at {self.label_party_}, whose table is not here")
        with marked(self.label_party_, "score"):
            target = column(federation[self.label_party_], self.parts_[self.label_party_].target, "target")
        return target.iloc[np.sort(rows)]

    def _weights(self, federation: Data, rows: Array, given: object) -> Array | None:
        if given is None:
            return None
        return np.asarray(weights_of(given, len(federation[self.label_party_]))[np.sort(rows)])

    def _parameters(
        self, owner: str, parties: Sequence[str], *, may_be_empty: bool = False
    ) -> VerticalLinear:
        if not isinstance(self.encryption, Paillier):
            raise ConfigError(
                f"encryption={self.encryption!r} should be Paillier(...); security='plain' goes without"
            )
        check_network((), self.standardise, self.random_state)
        check_protocol(self.protocol, False, len(parties))
        told = {name: value for name, value in self.get_params().items() if name not in _NOT_TOLD}
        parameters: VerticalLinear = self._program.read(
            {
                **{name: v.item() if isinstance(v, np.generic) else v for name, v in told.items()},
                "label_party": owner,
                "family": self._family,
                "key_bits": self.encryption.bits,
                "small_key": self.encryption.small_key,
                "backend": self.encryption.backend,
                "normalise": check_rules(self.normalise),
                "warm_start": self._goes_on,
                "may_be_empty": may_be_empty,
            }
        )
        return parameters


class VerticalLogisticRegression(ClassifierMixin, _VerticalLinear):
    """Logistic regression over columns of several parties; see its base for the parameters.

    Two classes have one score, and `coef_` are of the second; more have one each, and softmax.
    """

    _family = "logistic"

    def predict(self, data: Data) -> pd.Series:
        """The likeliest class of each row, indexed by id, in the label party's row order.

        data: every party's table, aligned anew; the target is not looked at. Sets `predict_alignment_` and
        `predict_ledger_`. Raises ConfigError where a party is missing, else as `fit`.
        """
        federation, scores, rows = self._outputs(data)
        values = self.classes_[self._chances(scores).argmax(axis=1)]
        return self._placed(federation, rows, pd.Series(values, name=self.parts_[self.label_party_].target))

    def predict_proba(self, data: Data) -> pd.DataFrame:
        """Each row's probability of each class (columns are `classes_`); otherwise as `predict`."""
        federation, scores, rows = self._outputs(data)
        return self._placed(
            federation, rows, pd.DataFrame(self._chances(scores), columns=list(self.classes_))
        )

    def score(self, data: Data, sample_weight: object = None) -> float:
        """The accuracy over the rows that all parties have; the label party's table holds the target."""
        federation, scores, rows = self._outputs(data)
        predicted = self.classes_[self._chances(scores)[np.argsort(rows)].argmax(axis=1)]
        truth, weights = self._truth(federation, rows), self._weights(federation, rows, sample_weight)
        return float(accuracy_score(truth.to_numpy(), predicted, sample_weight=weights))

    def _chances(self, scores: Array) -> Array:
        if scores.shape[1] > 1:
            return np.asarray(softmax(scores, axis=1))
        return np.column_stack([expit(-scores), expit(scores)])

    def _set_learnt(self, head: Head) -> None:
        super()._set_learnt(head)
        self.classes_ = np.asarray(head.classes)


class _VerticalRegressor(RegressorMixin, _VerticalLinear):
    """What the regressors share."""

    def predict(self, data: Data) -> pd.Series:
        """The expected value of each row, indexed by id, in the label party's row order.

        data: every party's table, aligned anew; the target is not looked at. Sets `predict_alignment_` and
        `predict_ledger_`. Raises ConfigError where a party is missing, else as `fit`.
        """
        federation, scores, rows = self._outputs(data)
        name = self.parts_[self.label_party_].target
        return self._placed(federation, rows, pd.Series(self._means(scores), name=name))

    def _means(self, scores: Array) -> Array:
        raise NotImplementedError

    def _scored(self, data: Data, sample_weight: object) -> tuple[Array, Array, Array | None]:
        federation, scores, rows = self._outputs(data)
        truth, weights = self._truth(federation, rows), self._weights(federation, rows, sample_weight)
        return truth.to_numpy(np.float64), self._means(scores[np.argsort(rows)]), weights


class VerticalLinearRegression(_VerticalRegressor):
    """Least squares over columns of several parties; see its base for the parameters.

    The label party standardises the target on the common training rows: l1 and l2 are about coefficients of
    that, which for l2 is the same. `coef_` and `intercept_` are in the target's own unit.
    """

    _family = "linear"

    def score(self, data: Data, sample_weight: object = None) -> float:
        """R^2 over the rows that all parties have; the label party's table holds the target."""
        truth, predicted, weights = self._scored(data, sample_weight)
        return float(r2_score(truth, predicted, sample_weight=weights))

    def _means(self, scores: Array) -> Array:
        scaler = self._head.scaler
        assert scaler is not None
        return np.asarray(scaler.inverse(scores)[:, 0])


class VerticalPoissonRegressor(_VerticalRegressor):
    """Poisson regression of counts, with a log link; see `VerticalLinearRegression`'s base."""

    _family = "poisson"

    def score(self, data: Data, sample_weight: object = None) -> float:
        """D^2, the share of the deviance that is explained, over the rows that all parties have."""
        truth, predicted, weights = self._scored(data, sample_weight)
        return float(d2_tweedie_score(truth, predicted, sample_weight=weights, power=1))

    def _means(self, scores: Array) -> Array:
        return np.asarray(np.exp(scores[:, 0]))


def _by_column(coef: Array, columns: list[str], head: Head) -> pd.Series | pd.DataFrame:
    if coef.shape[1] == 1:
        return pd.Series(coef[:, 0], index=columns)
    return pd.DataFrame(coef, index=columns, columns=head.classes)
