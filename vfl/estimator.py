"""Vertical networks behind scikit-learn's `fit` and `predict`.

Takes part: the party that the target names (the label party) and every other party in the mapping. Who
learns what: see `vfl.align` and `vfl.neural`; `ledger_` lists every message of a training run and what it
reveals. Semi-honest parties; no defence against what gradients and embeddings give away.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self, TypeVar

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from torch import nn

from protocols.arrays import Array
from protocols.errors import ConfigError, NotFittedError, nearest
from protocols.federation import Federation
from protocols.programs import Seat
from protocols.progress import bar
from protocols.psi.choose import check_protocol
from protocols.psi.ids import Normalise, check_rules
from protocols.tables import Kind, split_target
from protocols.training import Settings, check_network, probabilities
from vfl import saving
from vfl.align import AlignmentReport, feature_parties, id_columns, report
from vfl.neural import Plan, Top
from vfl.program import VerticalNet, owned, program
from vfl.saving import Own

Data = Mapping[str, pd.DataFrame] | Federation
F = TypeVar("F", pd.DataFrame, pd.Series)


class _VerticalNet(BaseEstimator):
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
    duplicates: "error", or "first" to let the first row of a repeated id stand for it.
    normalise: what every party does to its ids before they are compared, any of "strip", "casefold" and
        "digits"; see `vfl.align`.
    protocol: by which two parties compare their ids, "ecdh", "kkrt", or "auto", which chooses by their
        number; see `vfl.align`.
    unmatched: whether `predict` leaves out the label party's rows that not every party knows ("drop"), or
        lists them without a prediction ("nan"). So it does with rows left out by duplicates="first".
    random_state: seed of weights, batches and dropout. Alignment draws its secrets from the operating system.
    """

    _kind: Kind

    def __init__(
        self,
        *,
        bottoms: Mapping[str, nn.Module] | None = None,
        top: nn.Module | None = None,
        hidden: Sequence[int] = (64, 32),
        epochs: int = 10,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        standardise: bool = True,
        duplicates: Literal["error", "first"] = "error",
        normalise: Normalise = (),
        protocol: Literal["auto", "ecdh", "kkrt"] = "auto",
        unmatched: Literal["drop", "nan"] = "drop",
        random_state: int = 0,
    ) -> None:
        self.bottoms = bottoms
        self.top = top
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.standardise = standardise
        self.duplicates = duplicates
        self.normalise = normalise
        self.protocol = protocol
        self.unmatched = unmatched
        self.random_state = random_state

    def fit(self, data: Data, target: str, id: str | Mapping[str, str]) -> Self:
        """Align the parties' tables and train on the rows that all of them have.

        data: party -> table with an id column and numeric features, or a federation. target:
        "party.column"; that party is the label party, and needs no features. id: the id column, or {party:
        its id column}; it is no feature. Tables are checked as a whole, also rows that turn out unmatched.

        Sets `alignment_` (who matched how many rows), `ledger_` (what was sent), `parts_` (what each party
        keeps). Raises ConfigError for settings and names, DataError for tables, AlignmentError for ids that
        do not meet; each says at which party.
        """
        federation = Federation.of(data)
        parties = federation.parties
        owner, target_column = split_target(target, parties)
        if owner not in federation:
            raise ConfigError(
                f"the target is at {owner}, whose table is not here; connect as {owner}, with data"
            )
        feature_parties(parties, owner)
        parameters = self._parameters(owner, parties)
        names = id_columns(id, parties)

        def seat(party: str) -> Seat:
            brought = {"bottom": (self.bottoms or {}).get(party), "top": self.top if party == owner else None}
            modules = {part: module for part, module in brought.items() if module is not None}
            wanted = target_column if party == owner else None
            return Seat(party, parties, federation[party], names[party], wanted, modules=modules)

        with bar(type(self).__name__) as on_progress:
            run = federation.execute(
                program, "fit", parameters, seat, parties, seed=self.random_state, on_progress=on_progress
            )
        self.parts_ = {party: owned(parameters, seat(party), held) for party, held in run.results.items()}
        self.parties_, self.label_party_, self.run_ = parties, owner, run.job
        self.alignment_: AlignmentReport = report(
            owner, {party: result[-1] for party, result in run.results.items()}, parties
        )
        self.ledger_ = run.ledger
        learnt = self.parts_[owner].top
        assert learnt is not None
        self._set_learnt(learnt)
        return self

    def save(self, store: str | Path, run: str | None = None) -> str:
        """Write each party's own part to `<store>/<party>/<run>/`; returns the run's id.

        Settings and the top model go with the label party's part; modules that were brought are saved as
        weights alone. What happened (`ledger_`, `alignment_`) is not saved.
        """
        settings = {
            name: value for name, value in self.get_params().items() if name not in ("bottoms", "top")
        }
        brought = {*(self.bottoms or {}), *(["top"] if self.top is not None else [])}
        return saving.save(Path(store), run, type(self).__name__, self._fitted(), settings, brought)

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
        settings, parts = saving.load(Path(store), run, cls.__name__, bottoms or {}, top)
        loaded = cls(bottoms=bottoms, top=top, **settings)
        loaded.parts_, loaded.parties_, loaded.run_ = parts, tuple(parts), run
        loaded.label_party_, learnt = next((party, own.top) for party, own in parts.items() if own.top)
        loaded._set_learnt(learnt)
        return loaded

    def _outputs(self, data: Data) -> tuple[Data, Array, Array]:
        """(federation, the top model's outputs (k, outputs), the label party's rows (k,) they are for)."""
        parts, owner = self._fitted(), self.label_party_
        if self.unmatched not in ("drop", "nan"):
            raise ConfigError(f'unmatched={self.unmatched!r} should be "drop" or "nan"')
        federation = Federation.of(data)
        _check_parties(federation.parties, self.parties_)
        parameters = self._parameters(owner, federation.parties, may_be_empty=self.unmatched == "nan")

        def seat(party: str) -> Seat:
            return Seat(party, self.parties_, federation[party], kept=parts[party])

        with bar(type(self).__name__) as on_progress:
            run = federation.execute(
                *(program, "predict", parameters, seat, self.parties_),
                seed=self.random_state,
                on_progress=on_progress,
                run=self.run_,
            )
        outputs, aligned = run.results[owner]
        self.predict_ledger_ = run.ledger
        self.predict_alignment_ = report(owner, run.results | {owner: aligned}, self.parties_)
        return federation, outputs, aligned.rows

    def _placed(self, federation: Data, rows: Array, predicted: F) -> F:
        """`predicted`, of the label party's `rows`, in that party's order and indexed by its ids."""
        name = self.parts_[self.label_party_].id
        ids = federation[self.label_party_][name]
        predicted = predicted.set_axis(rows).sort_index()
        if self.unmatched == "nan":
            predicted = predicted.reindex(np.arange(len(ids)))
        return predicted.set_axis(pd.Index(ids.iloc[predicted.index.to_numpy()], name=name))

    def _fitted(self) -> dict[str, Own]:
        if not hasattr(self, "parts_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted; call fit first")
        return self.parts_

    def _set_learnt(self, top: Top) -> None:
        """Attributes that a kind of estimator has of its own."""

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
        check_network(self.hidden, self.standardise, self.random_state)
        settings = Settings.of(self, self._kind, self.epochs)
        check_protocol(self.protocol, False, len(parties))
        plan = Plan(settings, tuple(self.hidden), bool(self.standardise), self.protocol)
        return program.read(
            {
                **plan.settings.parameters(),
                "label_party": owner,
                "kind": self._kind,
                "epochs": plan.settings.epochs,
                "hidden": plan.hidden,
                "standardise": plan.standardise,
                "duplicates": self.duplicates,
                "normalise": check_rules(self.normalise),
                "protocol": plan.protocol,
                "may_be_empty": may_be_empty,
            }
        )


def _check_parties(given: Sequence[str], trained: Collection[str]) -> None:
    """ConfigError unless those given are those of the training: who is missing, and who is unknown."""
    missing = [party for party in trained if party not in given]
    wrong = [f"no table of {', '.join(missing)}"] if missing else []
    wrong += [
        f"{party} took no part in the training{nearest(party, missing or trained)}"
        for party in given
        if party not in trained
    ]
    if wrong:
        raise ConfigError(
            f"predicting needs exactly the parties of the training, {', '.join(trained)}: {'; '.join(wrong)}"
        )


class VerticalNetClassifier(ClassifierMixin, _VerticalNet):
    """A vertical network for classification; see its base for the parameters."""

    _kind = "classification"

    def predict(self, data: Data) -> pd.Series:
        """The likeliest class of each row, indexed by id, in the label party's row order.

        data: every party's table, aligned anew; the target is not looked at. Sets `predict_alignment_` and
        `predict_ledger_`. Raises ConfigError where a party is missing, else as `fit`.
        """
        federation, outputs, rows = self._outputs(data)
        values = self.classes_[outputs.argmax(axis=1)]
        return self._placed(federation, rows, pd.Series(values, name=self.parts_[self.label_party_].target))

    def predict_proba(self, data: Data) -> pd.DataFrame:
        """Each row's probability of each class (columns are `classes_`); otherwise as `predict`."""
        federation, outputs, rows = self._outputs(data)
        return self._placed(
            federation, rows, pd.DataFrame(probabilities(outputs), columns=list(self.classes_))
        )

    def _set_learnt(self, top: Top) -> None:
        self.classes_ = np.asarray(top.classes)


class VerticalNetRegressor(RegressorMixin, _VerticalNet):
    """A vertical network for regression; see its base for the parameters.

    The label party standardises the target on the common training rows, and undoes it when predicting.
    """

    _kind = "regression"

    def predict(self, data: Data) -> pd.Series:
        """The expected value of each row, indexed by id, in the label party's row order.

        data: every party's table, aligned anew; the target is not looked at. Sets `predict_alignment_` and
        `predict_ledger_`. Raises ConfigError where a party is missing, else as `fit`.
        """
        federation, outputs, rows = self._outputs(data)
        own = self.parts_[self.label_party_]
        assert own.top is not None and own.top.scaler is not None
        values = own.top.scaler.inverse(outputs)[:, 0]
        return self._placed(federation, rows, pd.Series(values, name=own.target))
