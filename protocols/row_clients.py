"""What estimators over rows share: clients with rows of the same columns, and a party "server" without data.

Takes part: the row-clients named in the data, and the server. Who learns what is told by each method's roles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import pandas as pd
from torch import nn

from protocols.arrays import Array
from protocols.data.tables import Kind, Scaler, column
from protocols.errors import ConfigError, marked
from protocols.estimator import ClassifierMixin, Estimator, RegressorMixin
from protocols.federation import Federation
from protocols.learning.clients import SERVER, check_clients, check_columns
from protocols.learning.training import check_network, probabilities
from protocols.programs import Parameters, Seat
from protocols.scores import Scoring, placed, weights_of

CLIENT = "client"  # whoever asks for a prediction of one table
Tables = Mapping[str, pd.DataFrame] | Federation


class RowClients(Estimator):
    """An estimator over rows. What a party keeps has a `target`, an `id` and `clients`."""

    _kind: ClassVar[Kind]
    _model: ClassVar[str] = "a torch.nn.Module"  # what one of the caller's own is
    _server_first: ClassVar[bool]  # in the roster
    model: Any
    hidden: Sequence[int]
    standardise: bool
    id_: str | None
    classes_: Array

    def fit(self, data: Tables, target: str, id: str | None = None) -> Self:
        """Train over the rows of every client in `data`, a mapping of client name to table or a Federation.

        target: the label column, at every client. id: a column that is no feature. All other columns are
        features, the same set at every client, in any order; each client takes them sorted by name, whole
        numbers by size and before text. ConfigError for settings that cannot be meant, DataError, naming the
        client, for a table that cannot be used, before any line opens.
        """
        federation = Federation.of(data)
        check_clients(federation.here)
        parameters, modules = self._parameters(target), self._modules()
        check_columns({name: federation[name] for name in federation.here}, target, id)
        clients = (party for party in federation.parties if party != SERVER)
        parties = (SERVER, *clients) if self._server_first else (*clients, SERVER)

        def seat(party: str) -> Seat:
            if party == SERVER:
                return Seat(party, parties, modules=modules)
            return Seat(party, parties, federation[party], id, modules=modules)

        self._train(federation, parameters, seat, parties)
        self.id_ = id  # of the caller, also where it is the server
        return self

    def _keep(self, own: dict[str, Any]) -> None:
        super()._keep(own)
        any_part = next(iter(own.values()))
        self.target_, self.clients_ = any_part.target, tuple(any_part.clients)
        self.id_ = next((one.id for one in own.values() if one.id is not None), None)

    def _told(self, target: str) -> Parameters:
        """Return the parameters that all parties are told, after the method has checked them."""
        raise NotImplementedError

    def _parameters(self, target: str) -> Any:
        """What all parties are told. ConfigError for settings that cannot be meant."""
        if not isinstance(self.model, nn.Module | str | None):
            raise ConfigError(
                f"model should be {self._model}, the name of a registered network, or None, "
                f"got {type(self.model).__name__}"
            )
        check_network(self.hidden, self.standardise, self.random_state)
        return self._told(target)

    def _settings(self, target: str) -> dict[str, Any]:
        """The settings that the program's parameters name."""
        names = self._program.parameters.model_fields
        told = {name: getattr(self, name) for name in names if hasattr(self, name)}
        model = self.model if isinstance(self.model, str) else "mlp"
        return {**told, "kind": self._kind, "target": target, "model": model}

    def _modules(self) -> dict[str, nn.Module]:
        return {"model": self.model} if isinstance(self.model, nn.Module) else {}

    def _asking(self, data: pd.DataFrame | Tables) -> Any:
        """Return the federation whose tables are predicted. Raises ConfigError if no table is here."""
        federation = Federation.of({CLIENT: data} if isinstance(data, pd.DataFrame) else data)
        if not federation.here:
            raise ConfigError("no table is here to predict; predict where the rows are")
        return federation

    def _rows(self, tables: Sequence[pd.DataFrame]) -> pd.Index:
        """Return the rows of all tables, indexed by id where they have it, else by their own index."""
        first, *others = (
            pd.Index(table[self.id_], name=self.id_) if self.id_ in table.columns else table.index
            for table in tables
        )
        return first.append(others)

    def _judged(
        self, data: pd.DataFrame | Tables, y: object, sample_weight: object
    ) -> tuple[pd.Series, Array, Array | None]:
        self._fitted()
        federation = self._asking(data)
        tables = {party: federation[party] for party in federation.here}
        if y is None:
            own = []
            for party, table in tables.items():
                with marked("" if party == CLIENT else party, "score"):
                    own.append(column(table, self.target_, "target"))
            truth = pd.concat(own).reset_index(drop=True)
        response = self._response(self._outputs(data)[0])
        with_ids = all(self.id_ in table.columns for table in tables.values())
        ids = pd.concat([table[self.id_] for table in tables.values()]) if with_ids else None
        first, *others = (table.index for table in tables.values())
        index = first.append(others)
        if y is not None:
            truth = placed(y, ids, index, "y")
        if sample_weight is None:
            return truth, response, None
        return truth, response, weights_of(placed(sample_weight, ids, index, "sample_weight"), len(truth))

    def _response(self, outputs: Array) -> Array:
        """Each row's probabilities (n, classes), or its number (n, 1)."""
        raise NotImplementedError

    def _outputs(self, data: pd.DataFrame | Tables) -> tuple[Array, pd.Index]:
        """The network's outputs for all rows, float32 (n, outputs), and the rows' index."""
        raise NotImplementedError

    def _scaler(self) -> Scaler | None:
        """Return how the target was standardised."""
        raise NotImplementedError


class RowClassifier(ClassifierMixin, RowClients):
    """Predicts classes."""

    _kind = "classification"
    score = Estimator.score  # and not scikit-learn's, whose second argument is needed

    def _response(self, outputs: Array) -> Array:
        return probabilities(outputs)

    def _usual_scoring(self) -> Scoring:
        return "accuracy"

    def predict(self, data: pd.DataFrame | Tables) -> pd.Series:
        """The likeliest label of each row, indexed by id if the table has it, else by its own index.

        data: one client's table, or the tables of several, whose predictions are concatenated. Columns
        that are no features are ignored. DataError, naming the party, for one that lacks features.
        """
        values, index = self._outputs(data)
        return pd.Series(self.classes_[values.argmax(axis=1)], index=index, name=self.target_)

    def predict_proba(self, data: pd.DataFrame | Tables) -> pd.DataFrame:
        """Each row's probabilities, float64, one column per class; otherwise as `predict`."""
        values, index = self._outputs(data)
        return pd.DataFrame(self._response(values), index=index, columns=self.classes_.tolist())


class RowRegressor(RegressorMixin, RowClients):
    """Predicts numbers. The target is standardised inside, with the moments over all clients' rows."""

    _kind = "regression"
    score = Estimator.score  # and not scikit-learn's, whose second argument is needed

    def _response(self, outputs: Array) -> Array:
        scaler = self._scaler()
        assert scaler is not None
        return scaler.inverse(outputs)

    def _usual_scoring(self) -> Scoring:
        return "r2"

    def predict(self, data: pd.DataFrame | Tables) -> pd.Series:
        """Each row's number in the target's unit, float64; otherwise as a classifier's `predict`."""
        values, index = self._outputs(data)
        return pd.Series(self._response(values)[:, 0], index=index, name=self.target_)
