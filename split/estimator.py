"""`SplitClassifier` and `SplitRegressor`: split learning behind `fit` and `predict`.

The row-clients named in the data, and a party "server" that has no data. Who learns what: `split.variants`,
before training `split.setup`, when predicting `split.prediction`. Here all parties are in one process;
what each keeps is still apart, and predictions go over the lines as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from torch import nn

from protocols import tables
from protocols.arrays import Array
from protocols.errors import ConfigError, DataError, NotFittedError, VflError
from protocols.federation import Federation, Role
from protocols.models import mlp
from protocols.progress import bar
from protocols.tables import Kind
from protocols.training import Settings, probabilities
from protocols.wire.ledger import Ledger
from split import store as disk
from split.layers import Layers, Plan, check_cut, cut_positions
from split.prediction import answer, ask
from split.setup import ClientPart
from split.variants import client, server

SERVER, CLIENT = "server", "client"
HIDDEN = (64, 32)  # of the network that is built where none is given


class _Split(BaseEstimator):
    """What both estimators share. Learnt: `parts_` (the client's and the server's, apart), `client_model_`,
    `server_model_`, `clients_` (turn order), `feature_names_in_`, `n_features_in_`, `ledger_`, and
    after predicting `predict_ledger_`."""

    _kind: Kind

    def __init__(
        self,
        model: nn.Sequential | None = None,
        cut: int | tuple[int, int] = 2,
        *,
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
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.standardise = standardise
        self.random_state = random_state

    def fit(self, data: Mapping[str, pd.DataFrame] | Federation, target: str) -> Self:
        """Train over all row-clients in `data` (name -> table, all with the same columns), in turns.

        target: the name of the label column. ConfigError for settings or a cut that cannot be meant,
        DataError, naming the client, for a table that cannot be used.
        """
        federation, plan = Federation.of(data), self._plan()
        if SERVER in federation:
            raise ConfigError(f"no client can be named {SERVER!r}: that is the party without data")
        inputs, columns = _inputs(federation, target, self._kind)
        clients = federation.parties
        roles: dict[str, Role] = {
            name: partial(client, plan=plan, x=x, y=y, server=SERVER, clients=clients)
            for name, (x, y) in inputs.items()
        }
        roles[SERVER] = partial(server, plan=plan, clients=clients)
        with bar(type(self).__name__) as report:
            run = federation.run(roles, seed=self.random_state, on_progress=report)
        # Every client ends with the same layers; here one caller stands for all of them.
        self._keep(run.results[clients[0]], run.results[SERVER], columns)
        self.clients_ = clients
        self.ledger_ = run.ledger
        return self

    def save(self, store: str | Path, run: str) -> None:
        """Write each party's part as `<store>/<party>/<run>/`."""
        self._check_fitted()
        fitted = disk.Fitted(
            *self.parts_, self.clients_, self.feature_names_in_.tolist(), cut_positions(self.cut)
        )
        disk.save(Path(store), run, type(self).__name__, fitted)

    def load(self, store: str | Path, run: str) -> Self:
        """Take over what `save` wrote. This estimator must have the saved one's model and cut.

        The ledger of training is not kept on disk; `ledger_` is empty.
        """
        fitted = disk.load(Path(store), run, type(self).__name__, self._plan())
        self._keep(fitted.client, fitted.server, fitted.columns)
        self.clients_ = fitted.clients
        self.ledger_ = Ledger()
        return self

    def _plan(self) -> Plan:
        names = ("epochs", "batch_size", "learning_rate", "optimizer", "momentum", "weight_decay")
        settings = Settings(self._kind, *(getattr(self, name) for name in names))
        cut, model, seed = cut_positions(self.cut), self.model, self.random_state
        if model is None:
            check_cut(cut, 2 * len(HIDDEN) + 1)
            return Plan(lambda d, k: mlp(d, k, HIDDEN, seed), cut, settings, self.standardise)
        if type(model) is not nn.Sequential:
            raise ConfigError(f"model should be an nn.Sequential (no subclass), got {type(model).__name__}")
        check_cut(cut, len(model))
        return Plan(lambda d, k: model, cut, settings, self.standardise)

    def _keep(self, own: ClientPart, servers: Layers, columns: list[str]) -> None:
        self.parts_ = (own, servers)
        self.client_model_ = own.model
        self.server_model_ = servers.module
        self.feature_names_in_ = np.asarray(columns, dtype=object)
        self.n_features_in_ = len(columns)
        if own.classes:
            self.classes_ = np.asarray(own.classes)

    def _check_fitted(self) -> None:
        if not hasattr(self, "parts_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit or load first")

    def _outputs(self, table: pd.DataFrame) -> Array:
        """The network's outputs for the rows of one client's table, float32 (n, outputs), over the lines."""
        self._check_fitted()
        federation = Federation({CLIENT: table})
        try:
            x = tables.features(table, self.feature_names_in_.tolist())
        except VflError as error:
            raise error.at(CLIENT, "predict") from None
        own, servers = self.parts_
        roles: dict[str, Role] = {
            CLIENT: partial(ask, part=own, x=x, server=SERVER),
            SERVER: partial(answer, own=servers, client=CLIENT, u_shaped=own.head is not None),
        }
        run = federation.run(roles, seed=self.random_state)
        self.predict_ledger_ = run.ledger
        z: Array = run.results[CLIENT]
        return z


class SplitClassifier(ClassifierMixin, _Split):
    """Classify with a network whose first layers a client holds, and the rest a server.

    model: an `nn.Sequential` (b, columns) -> (b, classes), which is copied, or None for an MLP of 64 and 32.
    cut: 2 gives layers 0 and 1 to the client, the rest and the labels to the server (vanilla). (2, 4) gives
    the server only layers 2 and 3; the client holds the rest and keeps the labels (U-shaped).
    standardise: features, by mean and deviation over all clients. momentum: of "sgd". `classes_` is learnt.
    """

    _kind = "classification"

    def predict_proba(self, table: pd.DataFrame) -> pd.DataFrame:
        """Probabilities (n, classes), float64, indexed as `table`, whose other columns are ignored."""
        return pd.DataFrame(probabilities(self._outputs(table)), table.index, list(self.classes_))

    def predict(self, table: pd.DataFrame) -> pd.Series:
        """The likeliest class of each row, indexed as `table`."""
        return pd.Series(self.classes_[self._outputs(table).argmax(axis=1)], table.index)


class SplitRegressor(RegressorMixin, _Split):
    """Predict a number with a network whose first layers a client holds, and the rest a server.

    As `SplitClassifier`, with a model (b, columns) -> (b, 1). The target is standardised inside; its mean and
    deviation stay among the clients, in the vanilla shape too.
    """

    _kind = "regression"

    def predict(self, table: pd.DataFrame) -> pd.Series:
        """Each row's prediction in the target's unit, float64, indexed as `table`."""
        z = self._outputs(table)[:, 0].astype(np.float64)
        scaler = self.parts_[0].target
        assert scaler is not None
        return pd.Series(z * scaler.scale[0] + scaler.mean[0], table.index)


def _inputs(
    federation: Federation, target: str, kind: Kind
) -> tuple[dict[str, tuple[Array, pd.Series]], list[str]]:
    """Each client's features (n, d) and target (n,), and the d column names; checked at their owner."""
    inputs: dict[str, tuple[Array, pd.Series]] = {}
    columns: list[str] = []
    for name, table in federation.items():
        try:
            y = tables.column(table, target, "target")
            own = [column for column in table.columns.tolist() if column != target]
            columns = columns or own
            lacks, extra = len(set(columns) - set(own)), len(set(own) - set(columns))
            if lacks or extra or not own:
                raise DataError(
                    f"the table has {len(own)} feature columns: {lacks} of the first client's are missing, "
                    f"{extra} are not among them; every client needs the same ones, at least 1"
                )
            inputs[name] = (tables.features(table, columns), y)
            _ = tables.labels(y) if kind == "classification" else tables.numbers(y)
        except VflError as error:
            raise error.at(name, "fit") from None
    return inputs, columns
