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
import pandas as pd
from sklearn.base import ClassifierMixin, RegressorMixin
from torch import nn

from protocols.data.tables import Kind
from protocols.errors import ConfigError, nearest
from protocols.learning.training import Settings, check_network, probabilities
from protocols.programs import Seat
from protocols.psi.choose import check_protocol
from protocols.psi.ids import Normalise, check_rules
from vfl.base import Data, Vertical
from vfl.network import part as saving
from vfl.network.parameters import VerticalNet
from vfl.network.part import Own
from vfl.network.program import owned, program
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
    duplicates: "error", or "first" to let the first row of a repeated id stand for it.
    normalise: what every party does to its ids before they are compared, any of "strip", "casefold" and
        "digits"; see `vfl.align`.
    protocol: by which two parties compare their ids, "ecdh", "kkrt", or "auto", which chooses by their
        number and by what the parties' policies let be taken; see `vfl.align`.
    unmatched: whether `predict` leaves out the label party's rows that not every party knows ("drop"), or
        lists them without a prediction ("nan"). So it does with rows left out by duplicates="first".
    random_state: in one process, the seed of weights, batches and dropout. Over a network it is not used:
        each party draws them from a seed of its own, which no other knows, and no two runs are the same.
        Alignment draws its secrets from the operating system.
    """

    _program = program
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
    duplicates: Literal["error", "first"] = "error"
    normalise: Normalise = ()
    protocol: Literal["auto", "ecdh", "kkrt"] = "auto"
    unmatched: Literal["drop", "nan"] = "drop"
    random_state: int = 0

    def fit(self, data: Data, target: str, id: str | Mapping[str, str]) -> Self:
        """Align the parties' tables and train on the rows that all of them have.

        data: party -> table with an id column and numeric features, or a federation. target:
        "party.column"; that party is the label party, and needs no features. id: the id column, or {party:
        its id column}; it is no feature. Tables are checked as a whole, also rows that turn out unmatched.

        Sets `alignment_` (who matched how many rows), `ledger_` (what was sent), `parts_` (what each party
        keeps). Raises ConfigError for settings and names, DataError for tables, AlignmentError for ids that
        do not meet; each says at which party.
        """
        own: Own = self._fit(data, target, id)
        assert own.top is not None
        self._set_learnt(own.top)
        return self

    def save(self, store: str | Path, run: str | None = None) -> str:
        """Write each party's own part to `<store>/<party>/<run>/`; returns the run's id.

        Of a model that was trained over a network it is this party's part alone, and `run` the training's.
        Settings and the top model go with the label party's part; modules that were brought are saved as
        weights alone. What happened (`ledger_`, `alignment_`) is not saved.
        """
        settings = {
            name: value for name, value in self.get_params().items() if name not in ("bottoms", "top")
        }
        brought = {*(self.bottoms or {}), *(["top"] if self.top is not None else [])}
        parts = self._fitted()
        return saving.save(Path(store), self._saved_as(run), type(self).__name__, parts, settings, brought)

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
        loaded.parts_, loaded.run_ = parts, run
        loaded.label_party_, learnt = next((party, own.top) for party, own in parts.items() if own.top)
        loaded.parties_ = (loaded.label_party_, *learnt.widths)
        loaded._set_learnt(learnt)
        return loaded

    def _owned(self, parameters: VerticalNet, seat: Seat, held: Any) -> Own:
        return owned(parameters, seat, held)

    def _brought(self, party: str, owner: str) -> dict[str, Any]:
        brought = {"bottom": (self.bottoms or {}).get(party), "top": self.top if party == owner else None}
        return {"modules": {part: module for part, module in brought.items() if module is not None}}

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
        parameters: VerticalNet = program.read(
            {
                **settings.parameters(),
                "label_party": owner,
                "kind": self._kind,
                "epochs": settings.epochs,
                "hidden": tuple(self.hidden),
                "standardise": bool(self.standardise),
                "duplicates": self.duplicates,
                "normalise": check_rules(self.normalise),
                "protocol": self.protocol,
                "may_be_empty": may_be_empty,
            }
        )
        parameters.check()
        return parameters


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
