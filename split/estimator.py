"""`SplitClassifier` and `SplitRegressor`: split learning behind `fit` and `predict`.

The row-clients named in the data, and a party "server" that has no data. Who learns what: `split.variants`,
before training `split.setup`, when predicting `split.prediction`. Here all parties are in one process;
what each keeps is still apart, and predictions go over the lines as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from torch import nn

from protocols import tables
from protocols.arrays import Array
from protocols.errors import ConfigError, NotFittedError, marked
from protocols.federation import Federation, Role
from protocols.models import mlp
from protocols.progress import bar
from protocols.rows import check_clients, read_clients
from protocols.saving import load_parts
from protocols.tables import Kind
from protocols.training import Settings, check_network, probabilities
from split import storage
from split.layers import Plan, check_cut, cut_positions
from split.messages import SERVER
from split.prediction import answer, ask
from split.storage import Fitted
from split.variants import client, server

CLIENT = "client"  # whoever asks for a prediction of one table
Tables = Mapping[str, pd.DataFrame] | Federation


class _Split(BaseEstimator):
    """What both estimators share. Learnt: `parts_` (the client's and the server's, apart), `client_model_`,
    `server_model_`, `clients_` (turn order), `target_`, `id_`, `feature_names_in_`, `n_features_in_`,
    `ledger_` of training, and `predict_ledger_` of the last prediction."""

    _kind: Kind

    def __init__(
        self,
        model: nn.Sequential | None = None,
        cut: int | tuple[int, int] = 2,
        *,
        hidden: Sequence[int] = (64, 32),
        epochs: int = 10,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        standardise: bool = True,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.cut = cut
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.standardise = standardise
        self.random_state = random_state

    def fit(self, data: Tables, target: str, id: str | None = None) -> Self:
        """Train over all row-clients in `data` (name -> table, all with the same columns), in turns.

        target: the label column, at every client. id: a column that is no feature. ConfigError for settings
        or a cut that cannot be meant, DataError, naming the client, for a table that cannot be used.
        """
        federation, plan = Federation.here(data), self._plan()
        columns, rows = read_clients(federation, target, id, self._kind, SERVER)
        clients = federation.parties
        roles: dict[str, Role] = {
            name: partial(client, plan=plan, x=own.x, y=own.y, clients=clients) for name, own in rows.items()
        }
        roles[SERVER] = partial(server, plan=plan, clients=clients)
        with bar(type(self).__name__) as report:
            run = federation.run(roles, seed=self.random_state, on_progress=report)
        # Every client ends with the same layers; here one caller stands for all of them.
        learnt = Fitted(run.results[clients[0]], run.results[SERVER], clients, columns, target, id)
        self._keep(learnt)
        self.ledger_ = run.ledger
        return self

    def save(self, store: str | Path, run: str | None = None) -> str:
        """Write each party's own part to `<store>/<party>/<run>/`; returns the run's id.

        A model that was brought is saved as weights alone. `ledger_` is not saved.
        """
        self._check_fitted()
        settings = {name: value for name, value in self.get_params().items() if name != "model"}
        settings |= {"cut": list(cut_positions(self.cut)), "hidden": list(self.hidden)}
        return storage.save(Path(store), run, type(self).__name__, self._fitted, settings)

    @classmethod
    def load(cls, store: str | Path, run: str, *, model: nn.Sequential | None = None) -> Self:
        """What `save` wrote, ready to predict. A model that was brought must be brought again.

        ConfigError for a run that is not there or does not fit the model, DataError for parts that
        are damaged or do not belong together.
        """
        parts = load_parts(Path(store), run, cls.__name__)
        settings = storage.settings_in(parts)
        cut = settings.pop("cut")
        hidden = tuple(settings.pop("hidden"))
        loaded = cls(model, cut[0] if len(cut) == 1 else tuple(cut), hidden=hidden, **settings)
        loaded._keep(storage.fitted_in(parts, loaded._plan()))
        return loaded

    def _plan(self) -> Plan:
        check_network(self.hidden, self.standardise, self.random_state)
        settings = Settings.of(self, self._kind, self.epochs)
        cut, model, hidden, seed = cut_positions(self.cut), self.model, self.hidden, int(self.random_state)
        if model is None:
            check_cut(cut, 2 * len(hidden) + 1)
            return Plan(lambda d, k: mlp(d, k, hidden, seed), cut, settings, self.standardise)
        if type(model) is not nn.Sequential:
            raise ConfigError(f"model should be an nn.Sequential (no subclass), got {type(model).__name__}")
        check_cut(cut, len(model))
        return Plan(lambda d, k: model, cut, settings, self.standardise)

    def _keep(self, fitted: Fitted) -> None:
        self._fitted = fitted
        self.parts_ = {CLIENT: fitted.client, SERVER: fitted.server}
        self.client_model_ = fitted.client.model
        self.server_model_ = fitted.server.module
        self.clients_, self.target_, self.id_ = fitted.clients, fitted.target, fitted.id
        self.feature_names_in_ = np.asarray(fitted.columns, dtype=object)
        self.n_features_in_ = len(fitted.columns)
        if fitted.client.classes:
            self.classes_ = np.asarray(fitted.client.classes)

    def _check_fitted(self) -> None:
        if not hasattr(self, "_fitted"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit or load first")

    def _outputs(self, data: pd.DataFrame | Tables) -> tuple[Array, pd.Index]:
        """The network's outputs for all rows, float32 (n, outputs), asked for over the lines; their index."""
        self._check_fitted()
        own, columns = self._fitted.client, self._fitted.columns
        federation = Federation.here({CLIENT: data} if isinstance(data, pd.DataFrame) else data)
        check_clients(federation, SERVER)
        roles: dict[str, Role] = {}
        for name, table in federation.items():
            with marked(name, "predict"):
                roles[name] = partial(ask, part=own, x=tables.features(table, columns))
        asking = federation.parties
        roles[SERVER] = partial(
            answer, own=self._fitted.server, clients=asking, u_shaped=own.head is not None
        )
        with bar(type(self).__name__) as report:
            run = federation.run(roles, seed=self.random_state, on_progress=report)
        self.predict_ledger_ = run.ledger
        first, *others = (self._index(table) for table in federation.values())
        return np.concatenate([run.results[name] for name in asking]), first.append(others)

    def _index(self, table: pd.DataFrame) -> pd.Index:
        known = self.id_ is not None and self.id_ in table.columns
        return pd.Index(table[self.id_], name=self.id_) if known else table.index


class SplitClassifier(ClassifierMixin, _Split):
    """Classify with a network whose first layers a client holds, and the rest a server.

    model: an `nn.Sequential` (b, columns) -> (b, classes), which is copied; None: an MLP of `hidden` widths.
    cut: 2 gives layers 0 and 1 to the client, the rest and the labels to the server (vanilla). (2, 4) gives
    the server only layers 2 and 3; the client holds the rest and keeps the labels (U-shaped).
    standardise: features, by mean and deviation over all clients. momentum: of "sgd".
    """

    _kind = "classification"

    def predict(self, data: pd.DataFrame | Tables) -> pd.Series:
        """The likeliest class of each row, indexed by id if the table has it, else by its own index.

        data: one client's table, or the tables of several, whose predictions are concatenated. Columns
        that are no features are ignored. DataError, naming the party, for one that lacks features.
        """
        z, index = self._outputs(data)
        return pd.Series(self.classes_[z.argmax(axis=1)], index, name=self.target_)

    def predict_proba(self, data: pd.DataFrame | Tables) -> pd.DataFrame:
        """Each row's probabilities, float64, one column per class; otherwise as `predict`."""
        z, index = self._outputs(data)
        return pd.DataFrame(probabilities(z), index, list(self._fitted.client.classes))


class SplitRegressor(RegressorMixin, _Split):
    """Predict a number with a network whose first layers a client holds, and the rest a server.

    As `SplitClassifier`, with a model (b, columns) -> (b, 1). The target is standardised inside; its mean and
    deviation stay among the clients, in the vanilla shape too.
    """

    _kind = "regression"

    def predict(self, data: pd.DataFrame | Tables) -> pd.Series:
        """Each row's number in the target's unit, float64; otherwise as `SplitClassifier.predict`."""
        z, index = self._outputs(data)
        scaler = self._fitted.client.target
        assert scaler is not None
        return pd.Series(scaler.inverse(z)[:, 0], index, name=self.target_)
