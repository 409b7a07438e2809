"""Linear models over columns of several parties behind scikit-learn's `fit` and `predict`.

Takes part: the party that the target names (the label party) and every other party in the mapping. Who
learns what: see `vfl.align`, `vfl.linear.roles` and `vfl.linear.hidden`; `ledger_` lists every message of a
training run and what it reveals. Semi-honest parties.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning

from protocols.arrays import Array
from protocols.errors import ConfigError
from protocols.hazmat.paillier import Paillier
from protocols.learning.training import check_network
from protocols.programs import Program
from protocols.scores import EXPLAINED, Scoring
from vfl.base import Data, Vertical, VerticalClassifier, VerticalRegressor
from vfl.linear.parameters import Family, Security, Solver
from vfl.linear.part import Own
from vfl.linear.parts import Head
from vfl.linear.program import METHODS, owned, plain_program, program

PAILLIER = Paillier()


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
    duplicates, normalise, protocol, unmatched: see `Vertical`.
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

    _methods = METHODS
    _owned, _kept = staticmethod(owned), Own
    _not_told = (*Vertical._not_told, "encryption")
    _kind: ClassVar[Family]

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
        self._fit(data, target, id, sample_weight)
        self.is_plain_ = self._is_plain
        if self.solver == "lbfgs" and not self.converged_ and not self.early_stopping:
            warnings.warn(
                f"{type(self).__name__} took max_iter={self.max_iter} steps without reaching "
                f"tol={self.tol:g}; raise max_iter or l2",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def _everybody(self, own: Own) -> Sequence[str]:
        return (own.label_party, *own.peers)

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

    def _set_learnt(self, own: Own) -> None:
        head = self._head
        unit = 1.0 if head.scaler is None else float(head.scaler.scale[0])
        shift = 0.0 if head.scaler is None else float(head.scaler.mean[0])
        self.coef_ = {
            party: _by_column(unit * one.fitted.coef, one.columns, head) for party, one in self.parts_.items()
        }
        intercept = unit * head.intercept + shift
        self.intercept_ = intercept if len(intercept) > 1 else float(intercept[0])
        self.n_iter_, self.converged_ = head.steps, head.converged
        self.loss_curve_ = list(head.losses)

    def _told(self) -> dict[str, Any]:
        if not isinstance(self.encryption, Paillier):
            raise ConfigError(
                f"encryption={self.encryption!r} should be Paillier(...); security='plain' goes without"
            )
        check_network((), self.standardise, self.random_state)
        return {
            "family": self._kind,
            "key_bits": self.encryption.bits,
            "small_key": self.encryption.small_key,
            "backend": self.encryption.backend,
            "warm_start": self._goes_on,
        }


class VerticalLogisticRegression(VerticalClassifier, _VerticalLinear):
    """Logistic regression over columns of several parties; see its base for the parameters.

    Two classes have one score, and `coef_` are of the second; more have one each, and softmax.
    """

    _kind = "logistic"

    def _response(self, outputs: Array) -> Array:
        if outputs.shape[1] > 1:
            return np.asarray(softmax(outputs, axis=1))
        return np.column_stack([expit(-outputs), expit(outputs)])

    def _set_learnt(self, own: Own) -> None:
        super()._set_learnt(own)
        self.classes_ = np.asarray(self._head.classes)


class VerticalLinearRegression(VerticalRegressor, _VerticalLinear):
    """Least squares over columns of several parties; see its base for the parameters.

    The label party standardises the target on the common training rows: l1 and l2 are about coefficients of
    that, which for l2 is the same. `coef_` and `intercept_` are in the target's own unit.
    """

    _kind = "linear"

    def _response(self, outputs: Array) -> Array:
        scaler = self._head.scaler
        assert scaler is not None
        return np.asarray(scaler.inverse(outputs))


class VerticalPoissonRegressor(VerticalRegressor, _VerticalLinear):
    """Poisson regression of counts, with a log link; see `VerticalLinearRegression`'s base."""

    _kind = "poisson"

    def _usual_scoring(self) -> Scoring:
        return EXPLAINED

    def _response(self, outputs: Array) -> Array:
        return np.asarray(np.exp(outputs))


def _by_column(coef: Array, columns: list[str], head: Head) -> pd.Series | pd.DataFrame:
    if coef.shape[1] == 1:
        return pd.Series(coef[:, 0], index=columns)
    return pd.DataFrame(coef, index=columns, columns=head.classes)
