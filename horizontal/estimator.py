"""Scikit-learn's face of FedAvg: clients with rows of the same columns, and a server that averages.

Each client is a party; the server is one more, named "server". What each learns is told in
`horizontal.rounds` (the server: every update in the clear) and `horizontal.setup` (moments and labels).
Predicting is local: every client holds the final model, and no message is sent.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import JsonValue
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from torch import nn

from horizontal import storage
from horizontal.local import LocalRule, fedavg, fedsgd
from horizontal.rounds import Recipe, Trained, client, predictor, server
from horizontal.setup import Agreed
from protocols.arrays import Array
from protocols.errors import ConfigError, NotFittedError, marked
from protocols.federation import Federation, Role, simulate
from protocols.models import mlp
from protocols.progress import bar
from protocols.randomness import torch_seeded
from protocols.rows import read_clients
from protocols.tables import Kind, features
from protocols.training import Settings, check_count, check_network, outputs, probabilities

SERVER = "server"
Tables = Mapping[str, pd.DataFrame] | Federation


class _Federated(BaseEstimator):
    """What classifier and regressor share."""

    _kind: Kind

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        hidden: Sequence[int] = (64, 32),
        rounds: int = 20,
        local_epochs: int = 1,
        fraction: float = 1.0,
        algorithm: Literal["fedavg", "fedsgd"] = "fedavg",
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        standardise: bool = True,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.hidden = hidden
        self.rounds = rounds
        self.local_epochs = local_epochs
        self.fraction = fraction
        self.algorithm = algorithm
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.standardise = standardise
        self.random_state = random_state

    def fit(self, data: Tables, target: str, id: str | None = None) -> Self:
        """Train on the rows of every client in `data`, a mapping of client name to DataFrame or a Federation.

        target: the label column, at every client. id: a column that is no feature. All other columns are
        features, the same set at every client, in any order. ConfigError or DataError before any line
        opens.
        """
        local = self._local_rule()
        federation = Federation.here(data)
        names, rows = read_clients(federation, target, id, self._kind, SERVER)
        network = self._network(len(names))
        recipe = Recipe(
            *(len(names), network, local),
            rounds=self.rounds,
            fraction=self.fraction,
            standardise=self.standardise,
        )
        roles: dict[str, Role] = {SERVER: partial(server, recipe=recipe)}
        roles |= {name: partial(client, server=SERVER, rows=own, recipe=recipe) for name, own in rows.items()}
        with bar(type(self).__name__) as report:
            run = federation.run(roles, seed=self.random_state, on_progress=report)
        trained: Trained = run.results[SERVER]
        self.target_, self.id_ = target, id
        self.ledger_ = run.ledger
        self.history_ = pd.DataFrame([asdict(note) for note in trained.history])
        self.clients_ = federation.parties
        module = network(trained.agreed.outputs)
        trained.weights.load_into(module)
        self._keep(module, names, trained.agreed)
        return self

    def save(self, store: Path | str, run: str | None = None) -> str:
        """Write every party's part of this run under `<store>/<party>/<run>/`; the run's name.

        In horizontal learning each party's part is the whole model.
        """
        self._check_fitted()
        settings: dict[str, JsonValue] = {
            "parameters": {k: v for k, v in self.get_params(deep=False).items() if k != "model"},
            "features": list(self.feature_names_in_),
            "target": self.target_,
            "id": self.id_,
            "clients": list(self.clients_),
        }
        parties = (SERVER, *self.clients_)
        return storage.save(Path(store), run, parties, self._method(), settings, self.model_, self._agreed)

    @classmethod
    def load(
        cls, store: Path | str, run: str, *, party: str = SERVER, model: nn.Module | None = None
    ) -> Self:
        """The estimator that `save` wrote, from one party's part; it predicts, and has no ledger or history.

        A network of the caller's own is stored without its code: pass a module of the same shape as `model`.
        """
        told, weights, agreed = storage.load(Path(store), run, party, cls._method())
        made = cls(model, **{**told["parameters"], "hidden": tuple(told["parameters"]["hidden"])})
        made.target_, made.id_, made.clients_ = told["target"], told["id"], tuple(told["clients"])
        module = made._network(len(told["features"]))(agreed.outputs)
        weights.load_into(module)
        made._keep(module, told["features"], agreed)
        return made

    @classmethod
    def _method(cls) -> str:
        return f"horizontal.{cls.__name__}"

    def _keep(self, module: nn.Module, names: Sequence[str], agreed: Agreed) -> None:
        self.model_ = module.eval()
        self.feature_names_in_ = np.array(names, dtype=object)
        self.n_features_in_ = len(names)
        self._agreed = agreed
        if agreed.classes:
            self.classes_ = np.array(agreed.classes)

    def _check_fitted(self) -> None:
        if not hasattr(self, "model_"):
            raise NotFittedError(f"this {type(self).__name__} has not been fitted; call fit first")

    def _local_rule(self) -> LocalRule:
        check_network(self.hidden, self.standardise, self.random_state)
        check_count("rounds", self.rounds)
        check_count("local_epochs", self.local_epochs)
        if self.algorithm not in ("fedavg", "fedsgd"):
            raise ConfigError(f"algorithm={self.algorithm!r} should be 'fedavg' or 'fedsgd'")
        if self.algorithm == "fedsgd" and self.local_epochs != 1:
            raise ConfigError(
                f"local_epochs={self.local_epochs}: fedsgd takes one step a round, leave it at 1"
            )
        settings = Settings.of(self, self._kind, self.local_epochs)
        return fedavg(settings) if self.algorithm == "fedavg" else fedsgd(settings)

    def _network(self, inputs: int) -> Callable[[int], nn.Module]:
        if self.model is None:
            return lambda outputs: mlp(inputs, outputs, self.hidden, int(self.random_state))
        return own_network(self.model, inputs, self._kind, int(self.random_state))

    def _outputs(self, data: pd.DataFrame | Tables) -> tuple[Array, pd.Index]:
        """The network's outputs for every row, and the rows' index; each table's holder computes alone."""
        self._check_fitted()
        tables = {"client": data} if isinstance(data, pd.DataFrame) else dict(Federation.of(data))
        roles: dict[str, Role] = {}
        for name, table in tables.items():
            with marked(name, "predict"):
                x = features(table, list(self.feature_names_in_))
            roles[name] = partial(predictor, module=self.model_, scaler=self._agreed.features, x=x)
        run = simulate(roles)
        self.predict_ledger_ = run.ledger
        index = [self._index(table) for table in tables.values()]
        return np.concatenate([run.results[name] for name in tables]), index[0].append(index[1:])

    def _index(self, table: pd.DataFrame) -> pd.Index:
        known = self.id_ is not None and self.id_ in table.columns
        return pd.Index(table[self.id_], name=self.id_) if known else table.index


class FedClassifier(ClassifierMixin, _Federated):
    """Horizontal classification by FedAvg or FedSGD.

    model: any torch.nn.Module from float32 (n, features) to (n, classes), which is copied and left as it is;
        None: an MLP with `hidden` widths.
    rounds: how often the server averages. local_epochs: passes over its rows that a client makes in a round.
    fraction: share of the clients that is sampled in each round.
    algorithm: "fedavg", or "fedsgd": one full-batch step of plain SGD per client and round, to which
        `batch_size`, `optimizer` and `momentum` do not apply.
    standardise: whether features are standardised, with the moments over all clients' rows.

    Learnt: `model_` (the global module), `classes_`, `feature_names_in_`, `ledger_` (of training),
    `history_` (a row per round: round, clients, rows, loss), `predict_ledger_` (of the last predict:
    computing, no message).
    """

    _kind = "classification"

    def predict(self, data: pd.DataFrame | Tables) -> pd.Series:
        """The likeliest label of each row, indexed by id if the table has it, else by its own index.

        A mapping of tables is predicted at each holder and concatenated. DataError, naming the party, for a
        table that lacks a feature, or with gaps.
        """
        values, index = self._outputs(data)
        return pd.Series(self.classes_[values.argmax(axis=1)], index=index, name=self.target_)

    def predict_proba(self, data: pd.DataFrame | Tables) -> pd.DataFrame:
        """Each row's probabilities, one column per class; indexed as in `predict`."""
        values, index = self._outputs(data)
        return pd.DataFrame(probabilities(values), index=index, columns=list(self._agreed.classes))


class FedRegressor(RegressorMixin, _Federated):
    """Horizontal regression by FedAvg or FedSGD; settings and what is learnt as in `FedClassifier`.

    A `model` of the caller's own gives (n, 1). The target is standardised inside, with the moments over all
    clients' rows, and so is the loss in `history_`.
    """

    _kind = "regression"

    def predict(self, data: pd.DataFrame | Tables) -> pd.Series:
        """Each row's number, float64, indexed by id if the table has it, else by its own index.

        A mapping of tables is predicted at each holder and concatenated. DataError, naming the party, for a
        table that lacks a feature, or with gaps.
        """
        values, index = self._outputs(data)
        scaler = self._agreed.target
        assert scaler is not None
        return pd.Series(scaler.inverse(values)[:, 0], index=index, name=self.target_)


def own_network(model: nn.Module, inputs: int, kind: Kind, seed: int) -> Callable[[int], nn.Module]:
    """A function that copies the caller's `model`, once its width is seen to fit.

    ConfigError if it is no module, does not take (n, inputs) float32, or gives no (n, k).
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model should be a torch.nn.Module or None, got {type(model).__name__}")
    prototype = copy.deepcopy(model)
    try:
        with torch_seeded(seed):  # lazy layers draw their weights here
            shape = outputs(prototype, torch.zeros(2, inputs)).shape
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(f"model does not take float32 rows of {inputs} features: {error}") from error
    if len(shape) != 2 or shape[0] != 2:
        raise ConfigError(f"model gives outputs of shape {shape} for 2 rows, expected (2, outputs)")

    def build(wanted: int) -> nn.Module:
        if shape[1] != wanted:
            each = "one for each class" if kind == "classification" else "a number"
            raise ConfigError(f"model gives {shape[1]} outputs for a row, expected {wanted}: {each}")
        return copy.deepcopy(prototype)

    return build
