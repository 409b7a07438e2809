"""`SplitClassifier` and `SplitRegressor`: split learning behind `fit` and `predict`.

The row-clients named in the data, and a party "server" that has no data. Who learns what: `split.roles`,
before training `split.agreement`, when predicting `split.roles`. Over a mapping of tables all parties
are in one process; what each keeps is still apart, and predictions go over the lines as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from torch import nn

from protocols.arrays import Array
from protocols.data.tables import Scaler
from protocols.errors import ConfigError
from protocols.learning.clients import SERVER, check_clients
from protocols.learning.training import Settings
from protocols.parts import Part
from protocols.programs import Seat
from protocols.row_clients import CLIENT, RowClassifier, RowClients, RowRegressor, Tables
from split.agreement import ClientPart, ServerPart
from split.chain import cut_positions
from split.parameters import SplitNet
from split.part import Own, own_in
from split.program import METHODS, owned, program


@dataclass(eq=False, repr=False)
class _Split(RowClients):
    """What both estimators share. Learnt: `parts_` (the client's and the server's, apart), `client_model_`,
    `server_model_`, `clients_` (turn order), `target_`, `id_`, `feature_names_in_` (sorted),
    `n_features_in_`, `ledger_` of training, `predict_ledger_` of the last prediction. Between processes, what
    is another party's is absent: a client has no `server_model_`, the server no `client_model_`, no classes
    and no column names."""

    _program, _methods, _model, _server_first = program, METHODS, "an nn.Sequential", False
    _owned, _kept = staticmethod(owned), Own

    model: nn.Sequential | str | None = None
    cut: int | tuple[int, int] = 2
    _: KW_ONLY
    hidden: Sequence[int] = (64, 32)
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    standardise: bool = True
    random_state: int = 0

    @classmethod
    def load(
        cls, store: str | Path, run: str, *, party: str | None = None, model: nn.Sequential | None = None
    ) -> Self:
        """What `save` wrote, ready to predict. A model that was brought must be brought again.

        party: load this one's part alone, as it has it where the others are elsewhere. ConfigError for a run
        that is not there or does not fit the model, DataError for parts that are damaged or do not belong
        together.
        """
        return cls._loaded(store, run, party, model=model)

    def _recall(self, part: Part) -> Own:
        # The label column is no matter of the layers.
        return own_in(part, self._parameters(""), self._modules().get("model"))

    def _told(self, target: str) -> SplitNet:
        Settings.of(self, self._kind, self.epochs)
        parameters = program.read({**self._settings(target), "cut": cut_positions(self.cut)})
        parameters.check(self._modules().get("model"))
        return parameters

    @classmethod
    def _read(cls, name: str, value: Any) -> Any:
        one_cut = name == "cut" and isinstance(value, list) and len(value) == 1
        return value[0] if one_cut else super()._read(name, value)

    def _keep(self, own: dict[str, Own]) -> None:
        clients = [party for party in own if party != SERVER]
        # Every client ends with the same layers; here one caller stands for all of them.
        own = {p: one if p == SERVER else replace(one, part=own[clients[0]].part) for p, one in own.items()}
        super()._keep(own)
        self.parts_ = {SERVER if party == SERVER else CLIENT: one.part for party, one in own.items()}
        for part in self.parts_.values():
            if isinstance(part, ServerPart):
                self.server_model_ = part.layers.module.eval()
                self.n_features_in_ = part.columns
                continue
            self.client_model_ = part.model.eval()
            self.feature_names_in_ = np.asarray(part.columns, dtype=object)
            self.n_features_in_ = len(part.columns)
            if part.classes:
                self.classes_ = np.asarray(part.classes)

    def _client_part(self) -> ClientPart:
        part = self.parts_.get(CLIENT)
        if not isinstance(part, ClientPart):
            raise ConfigError("this is the server's part, which knows no columns; predict at a client")
        return part

    def _scaler(self) -> Scaler | None:
        return self._client_part().target

    def _outputs(self, data: pd.DataFrame | Tables) -> tuple[Array, pd.Index]:
        """The network's outputs for all rows, float32 (n, outputs), asked for over the lines; their index."""
        self._fitted()
        part, federation = self._client_part(), self._asking(data)
        asking = federation.here
        check_clients(asking)
        parties = (*asking, SERVER)

        def seat(party: str) -> Seat:
            if party != SERVER:
                return Seat(party, parties, federation[party], self.id_, kept=part)
            if SERVER not in self.parts_:
                raise ConfigError("its part is not here: load all parts, or predict over the network")
            return Seat(party, parties, kept=self.parts_[SERVER])

        run = self._execute(
            federation, "predict", self._parameters(self.target_), seat, parties, run=self.run_
        )
        self.predict_ledger_ = run.ledger
        outputs = np.concatenate([run.results[name] for name in asking])
        return outputs, self._rows([federation[name] for name in asking])


class SplitClassifier(RowClassifier, _Split):
    """Classify with a network whose first layers a client holds, and the rest a server.

    model: an `nn.Sequential` (b, columns) -> (b, classes), which is copied; the name of a registered network
    that is one (entry points `vfl.models`); None: an MLP of `hidden` widths. Between processes it must have a
    name.
    cut: 2 gives layers 0 and 1 to the client, the rest and the labels to the server (vanilla). (2, 4) gives
    the server only layers 2 and 3; the client holds the rest and keeps the labels (U-shaped).
    standardise: features, by mean and deviation over all clients. momentum: of "sgd".
    random_state: in one process, the seed of the first weights, batches and dropout. Between processes it is
    not used: each party draws from a seed of its own, which no other knows; the clients' layers begin as the
    first client draws them.
    """


class SplitRegressor(RowRegressor, _Split):
    """Predict a number with a network whose first layers a client holds, and the rest a server.

    As `SplitClassifier`, with a model (b, columns) -> (b, 1). The target is standardised inside; its mean and
    deviation stay among the clients, in the vanilla shape too.
    """
