"""Scikit-learn's face of FedAvg: clients with rows of the same columns, and a server that averages.

Each client is a party; the server is one more, named "server". What each learns is told in
`horizontal.rounds` (the server: every update in the clear) and `horizontal.agreement` (columns, moments,
labels). Predicting is local: every client holds the final model, and no message is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from torch import nn

from horizontal.algorithms.choice import Choice, ClientChoice, ServerChoice, chosen, told
from horizontal.parameters import Horizontal
from horizontal.part import Own
from horizontal.program import METHODS, owned, program
from horizontal.rounds import Trained, predictor
from protocols.arrays import Array
from protocols.data.tables import Scaler, features
from protocols.errors import ConfigError, marked
from protocols.federation import simulate
from protocols.learning.clients import SERVER
from protocols.party import Role
from protocols.programs import Parameters
from protocols.row_clients import RowClassifier, RowClients, RowRegressor, Tables


@dataclass(eq=False, repr=False)
class _Federated(RowClients):
    """What classifier and regressor share."""

    _program, _methods, _server_first = program, METHODS, True
    _owned, _kept = staticmethod(owned), Own

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

    @classmethod
    def load(
        cls, store: Path | str, run: str, *, party: str = SERVER, model: nn.Module | None = None
    ) -> Self:
        """The estimator that `save` wrote, from one party's part; it predicts, and has no ledger or history.

        In horizontal learning each party's part is the whole model. A network of the caller's own is stored
        without its code: pass a module of the same shape as `model`.
        """
        return cls._loaded(store, run, party, model=model)

    def _keep(self, own: dict[str, Own]) -> None:
        # All hold the same model; the server alone is told no column names. Here one caller stands for all.
        held = own[next((party for party in own if party != SERVER), SERVER)]
        own = {
            party: replace(one, id=held.id, trained=replace(one.trained, columns=held.trained.columns))
            for party, one in own.items()
        }
        super()._keep(own)
        self._trained: Trained = held.trained
        agreed = self._trained.agreed
        network = self._parameters(self.target_).network(self._modules().get("model"), int(self.random_state))
        self.model_ = network(agreed.inputs, agreed.outputs)
        self._trained.weights.load_into(self.model_)
        self.model_.eval()
        self.n_features_in_ = agreed.inputs
        if SERVER in own:
            self.history_ = pd.DataFrame([asdict(note) for note in own[SERVER].trained.history])
        if self._trained.columns is not None:
            self.feature_names_in_ = np.array(self._trained.columns, dtype=object)
        if agreed.classes:
            self.classes_ = np.array(agreed.classes)

    @classmethod
    def _write(cls, value: Any) -> Any:
        return told(value) if isinstance(value, Choice) else value

    @classmethod
    def _read(cls, name: str, value: Any) -> Any:
        kinds = {"algorithm": ClientChoice, "server": ServerChoice}
        by_name = name not in kinds or isinstance(value, str)
        return super()._read(name, value) if by_name else chosen(kinds[name], value)

    def _told(self, target: str) -> Parameters:
        algorithm, server = chosen(ClientChoice, self.algorithm), chosen(ServerChoice, self.server)
        given = {**self._settings(target), "algorithm": algorithm, "server": server}
        Horizontal.model_construct(**given).rules()  # says in our words what pydantic would say in its own
        return program.read(given)

    def _scaler(self) -> Scaler | None:
        return self._trained.agreed.target

    def _outputs(self, data: pd.DataFrame | Tables) -> tuple[Array, pd.Index]:
        """The network's outputs for every row, and the rows' index; each table's holder computes alone."""
        self._fitted()
        if not hasattr(self, "feature_names_in_"):
            raise ConfigError(
                "this part is of the server, which was told no column names; predict at a client"
            )
        federation = self._asking(data)
        roles: dict[str, Role] = {}
        for name in federation.here:
            with marked(name, "predict"):
                x = features(federation[name], list(self.feature_names_in_))
            roles[name] = partial(predictor, module=self.model_, scaler=self._trained.agreed.features, x=x)
        run = simulate(roles)
        self.predict_ledger_ = run.ledger
        outputs = np.concatenate([run.results[name] for name in roles])
        return outputs, self._rows([federation[name] for name in roles])


class FedClassifier(RowClassifier, _Federated):
    """Horizontal classification by FedAvg or FedSGD.

    model: any torch.nn.Module from float32 (n, features) to (n, classes), which is copied and left as it is;
        the name of a registered network (entry points `vfl.models`); None: an MLP with `hidden` widths.
        Between processes it needs a name.
    rounds: how often the server averages. local_epochs: passes over its rows that a client makes in a round.
    fraction: share of the clients that is sampled in each round.
    algorithm: what clients do, by its registered name or as a value: "fedavg", or "fedsgd", one step of
        plain SGD over all its rows per client and round, to which `batch_size`, `optimizer` and `momentum` do
        not apply.
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


class FedRegressor(RowRegressor, _Federated):
    """Horizontal regression by FedAvg or FedSGD; settings and what is learnt as in `FedClassifier`.

    A `model` of the caller's own gives (n, 1). The target is standardised inside, with the moments over all
    clients' rows, and so is the loss in `history_`.
    """
