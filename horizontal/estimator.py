"""Scikit-learn's face of FedAvg: clients with rows of the same columns, and a server that averages.

Each client is a party; the server is one more, named "server". What each learns is told in
`horizontal.rounds` (the server: every update in the clear) and `horizontal.agreement` (columns, moments,
labels). Predicting is local: every client holds the final model, and no message is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import pandas as pd
from pydantic import JsonValue
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from torch import nn

from horizontal import part
from horizontal.algorithms.choice import Choice, ClientChoice, ServerChoice, chosen, told
from horizontal.parameters import Horizontal, rules
from horizontal.program import METHODS, program
from horizontal.rounds import Trained, predictor
from protocols.arrays import Array
from protocols.data.tables import Kind, features
from protocols.errors import ConfigError, marked
from protocols.estimator import NotFittedError, save_parts
from protocols.federation import Federation, simulate
from protocols.learning.clients import SERVER, check_clients, check_columns, row_clients
from protocols.learning.training import check_network, probabilities
from protocols.party import Role
from protocols.programs import Seat
from protocols.progress import bar

Tables = Mapping[str, pd.DataFrame] | Federation


@dataclass(eq=False, repr=False)
class _Federated(BaseEstimator):
    """What classifier and regressor share."""

    _kind: ClassVar[Kind]

    model: nn.Module | str | None = None
    _: KW_ONLY
    hidden: Sequence[int] = (64, 32)
    rounds: int = 20
    local_epochs: int = 1
    fraction: float = 1.0
    algorithm: str | ClientChoice = "fedavg"
    server: str | ServerChoice = "average"
    batch_size: int = 32
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    standardise: bool = True
    random_state: int = 0

    def fit(self, data: Tables, target: str, id: str | None = None) -> Self:
        """Train on the rows of every client in `data`, a mapping of client name to DataFrame or a Federation.

        target: the label column, at every client. id: a column that is no feature. All other columns are
        features, the same set at every client, in any order; each client takes them sorted by name, whole
        numbers by size and before text. ConfigError or DataError before any line opens.
        """
        federation = Federation.of(data)
        check_clients(federation.here)
        parameters = self._parameters(target)
        modules = {"model": self.model} if isinstance(self.model, nn.Module) else {}
        check_columns({name: federation[name] for name in federation.here}, target, id)
        parties = (SERVER, *(party for party in federation.parties if party != SERVER))

        def seat(party: str) -> Seat:
            if party == SERVER:
                return Seat(party, parties, modules=modules)
            return Seat(party, parties, federation[party], id, modules=modules)

        with bar(type(self).__name__) as report:
            run = federation.execute(
                *(program, "fit", parameters, seat, parties),
                seed=int(self.random_state),
                on_progress=report,
            )
        self.target_, self.id_ = target, id
        self.ledger_, self.run_ = run.ledger, run.job
        self.clients_ = row_clients(parties)
        if SERVER in run.results:
            notes = [asdict(note) for note in run.results[SERVER].history]
            self.history_ = pd.DataFrame(notes)
        # All hold the same model; the server alone is told no column names.
        held = tuple(run.results)
        self._keep(held, run.results[next((party for party in held if party != SERVER), SERVER)])
        return self

    def save(self, store: Path | str, run: str | None = None) -> str:
        """Write every party's part of this run under `<store>/<party>/<run>/`; the run's name.

        In horizontal learning each party's part is the whole model. After a run between processes there is
        one part here, this party's.
        """
        self._check_fitted()
        parameters: dict[str, JsonValue] = {
            name: told(value) if isinstance(value, Choice) else value
            for name, value in self.get_params(deep=False).items()
        }
        brought = isinstance(parameters["model"], nn.Module)
        if not isinstance(parameters["model"], str):
            del parameters["model"]
        parts = {
            party: part.part_of(
                *(self._method(), party, self._trained),
                parameters=parameters,
                target=self.target_,
                id=self.id_,
                clients=self.clients_,
                brought=brought,
            )
            for party in self._parties
        }
        return save_parts(Path(store), run, parts)

    @classmethod
    def load(
        cls, store: Path | str, run: str, *, party: str = SERVER, model: nn.Module | None = None
    ) -> Self:
        """The estimator that `save` wrote, from one party's part; it predicts, and has no ledger or history.

        A network of the caller's own is stored without its code: pass a module of the same shape as `model`.
        """
        held, trained = part.load(Path(store), run, party, cls._method())
        if held["brought"] and model is None:
            raise ConfigError(
                f"run {run!r} trained a network of the caller's own; pass one of its shape as model"
            )
        settings = {**held["parameters"], "hidden": tuple(held["parameters"]["hidden"])}
        for name, kind in (("algorithm", ClientChoice), ("server", ServerChoice)):
            if not isinstance(settings[name], str):
                settings[name] = chosen(kind, settings[name])
        made = cls(**(settings if model is None else {**settings, "model": model}))
        made.target_, made.id_, made.clients_ = held["target"], held["id"], tuple(held["clients"])
        made._keep((party,), trained)
        return made

    @classmethod
    def _method(cls) -> str:
        return METHODS[cls._kind]

    def _keep(self, parties: tuple[str, ...], trained: Trained) -> None:
        """Set what is learnt: at which `parties` here, and what each of them holds."""
        brought = self.model if isinstance(self.model, nn.Module) else None
        agreed = trained.agreed
        network = self._parameters(self.target_).network(brought, int(self.random_state))
        module = network(agreed.inputs, agreed.outputs)
        trained.weights.load_into(module)
        self.model_ = module.eval()
        self._parties, self._trained = parties, trained
        self.n_features_in_ = agreed.inputs
        if trained.columns is not None:
            self.feature_names_in_ = np.array(trained.columns, dtype=object)
        if agreed.classes:
            self.classes_ = np.array(agreed.classes)

    def _check_fitted(self) -> None:
        if not hasattr(self, "model_"):
            raise NotFittedError(f"this {type(self).__name__} has not been fitted; call fit first")

    def _parameters(self, target: str) -> Horizontal:
        """What all parties are told. ConfigError for settings that cannot be meant."""
        if not isinstance(self.model, nn.Module | str | None):
            raise ConfigError(
                "model should be a torch.nn.Module, the name of a registered network, or None, "
                f"got {type(self.model).__name__}"
            )
        check_network(self.hidden, self.standardise, self.random_state)
        given = {name: getattr(self, name) for name in Horizontal.model_fields if hasattr(self, name)}
        algorithm, server = chosen(ClientChoice, self.algorithm), chosen(ServerChoice, self.server)
        rules(self, self._kind, algorithm, server)
        given |= {"algorithm": algorithm, "server": server}
        name = self.model if isinstance(self.model, str) else "mlp"
        return program.read({**given, "kind": self._kind, "target": target, "model": name})

    def _outputs(self, data: pd.DataFrame | Tables) -> tuple[Array, pd.Index]:
        """The network's outputs for every row, and the rows' index; each table's holder computes alone."""
        self._check_fitted()
        if not hasattr(self, "feature_names_in_"):
            raise ConfigError(
                "this part is of the server, which was told no column names; predict at a client"
            )
        federation = Federation.of({"client": data} if isinstance(data, pd.DataFrame) else data)
        tables = {name: federation[name] for name in federation.here}
        if not tables:
            raise ConfigError("no table is here to predict; predict where the rows are")
        roles: dict[str, Role] = {}
        for name, table in tables.items():
            with marked(name, "predict"):
                x = features(table, list(self.feature_names_in_))
            roles[name] = partial(predictor, module=self.model_, scaler=self._trained.agreed.features, x=x)
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
        the name of a registered network (entry points `vfl.models`); None: an MLP with `hidden` widths.
        Between processes it needs a name.
    rounds: how often the server averages. local_epochs: passes over its rows that a client makes in a round.
    fraction: share of the clients that is sampled in each round.
    algorithm: what clients do, by its registered name or as a value: "fedavg", or "fedsgd", one full-batch
    step
        of plain SGD per client and round, to which `batch_size`, `optimizer` and `momentum` do not apply.
    server: what the server makes of the clients' mean: "average", "fedadam", or a value with settings, as
        `FedAdam(learning_rate=0.05)`.
    standardise: whether features are standardised, with the moments over all clients' rows.
    random_state: in one process, the seed of the first weights, the clients sampled, batches and dropout.
        Between processes it is not used: each party draws from a seed of its own, which no other knows.

    Learnt: `model_` (the global module), `classes_`, `feature_names_in_` (sorted), `ledger_` (of training),
    `history_` (a row per round: round, clients, rows, loss), `predict_ledger_` (of the last predict:
    computing, no message). Between processes a client has no `history_`, which is the server's, and the
    server no `feature_names_in_`, so that it cannot predict.
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
        return pd.DataFrame(probabilities(values), index=index, columns=list(self._trained.agreed.classes))


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
        scaler = self._trained.agreed.target
        assert scaler is not None
        return pd.Series(scaler.inverse(values)[:, 0], index=index, name=self.target_)
