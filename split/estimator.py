"""`SplitClassifier` and `SplitRegressor`: split learning behind `fit` and `predict`.

The row-clients named in the data, and a party "server" that has no data. Who learns what: `split.roles`,
before training `split.agreement`, when predicting `split.roles`. Over a mapping of tables all parties
are in one process; what each keeps is still apart, and predictions go over the lines as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from torch import nn

from protocols.arrays import Array
from protocols.data.tables import Kind
from protocols.errors import ConfigError
from protocols.estimator import NotFittedError, load_parts, save_parts
from protocols.federation import Federation
from protocols.learning.clients import SERVER, check_clients, check_columns, row_clients
from protocols.learning.training import Settings, check_network, probabilities
from protocols.programs import Seat
from protocols.progress import bar
from split import part as storage
from split.agreement import ClientPart, ServerPart
from split.chain import cut_positions
from split.parameters import SplitNet
from split.part import Own
from split.program import METHODS, program

CLIENT = "client"  # whoever asks for a prediction of one table
Tables = Mapping[str, pd.DataFrame] | Federation


@dataclass(eq=False, repr=False)
class _Split(BaseEstimator):
    """What both estimators share. Learnt: `parts_` (the client's and the server's, apart), `client_model_`,
    `server_model_`, `clients_` (turn order), `target_`, `id_`, `feature_names_in_` (sorted),
    `n_features_in_`, `ledger_` of training, `predict_ledger_` of the last prediction. Between processes, what
    is another party's is absent: a client has no `server_model_`, the server no `client_model_`, no classes
    and no column names."""

    _kind: ClassVar[Kind]

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

    def fit(self, data: Tables, target: str, id: str | None = None) -> Self:
        """Train over all row-clients in `data` (name -> table, all with the same columns), in turns.

        target: the label column, at every client. id: a column that is no feature. All other columns are
        features, in any order; each client takes them sorted by name, whole numbers by size and before text.
        ConfigError for settings or a cut that cannot be meant, DataError, naming the client, for a table that
        cannot be used.
        """
        federation = Federation.of(data)
        check_clients(federation.here)
        parameters, modules = self._parameters(target), self._modules()
        check_columns({name: federation[name] for name in federation.here}, target, id)
        parties = (*(party for party in federation.parties if party != SERVER), SERVER)

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
        self.clients_, self.target_, self.id_ = row_clients(parties), target, id
        self._keep(run.results)
        self.ledger_, self.run_ = run.ledger, run.job
        return self

    def save(self, store: str | Path, run: str | None = None) -> str:
        """Write each party's own part to `<store>/<party>/<run>/`; returns the run's id.

        A model that was brought is saved as weights alone. `ledger_` is not saved. After a run between
        processes there is one part here, this party's.
        """
        self._check_fitted()
        settings = {name: v for name, v in self.get_params().items() if name != "model" or isinstance(v, str)}
        settings |= {"cut": list(cut_positions(self.cut)), "hidden": list(self.hidden)}
        parts = {
            party: storage.part_of(
                *(METHODS[self._kind], party, own),
                settings=settings,
                target=self.target_,
                id=self.id_,
                clients=self.clients_,
            )
            for party, own in self._own.items()
        }
        return save_parts(Path(store), run, parts)

    @classmethod
    def load(
        cls, store: str | Path, run: str, *, party: str | None = None, model: nn.Sequential | None = None
    ) -> Self:
        """What `save` wrote, ready to predict. A model that was brought must be brought again.

        party: load this one's part alone, as it has it where the others are elsewhere. ConfigError for a run
        that is not there or does not fit the model, DataError for parts that are damaged or do not belong
        together.
        """
        parts = load_parts(Path(store), run, METHODS[cls._kind], None if party is None else [party])
        about: Mapping[str, Any] = next(iter(parts.values())).settings
        settings = {**about["settings"], "hidden": tuple(about["settings"]["hidden"])}
        cut = tuple(settings["cut"])
        settings["cut"] = cut[0] if len(cut) == 1 else cut
        loaded = cls(**(settings if model is None else {**settings, "model": model}))
        plan = loaded._parameters(about["target"])
        ids: list[Any] = [part.settings["id"] for part in parts.values() if "id" in part.settings]
        loaded.clients_, loaded.target_, loaded.run_ = tuple(about["clients"]), about["target"], run
        loaded.id_ = ids[0] if ids else None
        loaded._keep({name: storage.own_in(part, plan, model) for name, part in parts.items()})
        return loaded

    def _modules(self) -> dict[str, nn.Module]:
        return {"model": self.model} if isinstance(self.model, nn.Module) else {}

    def _parameters(self, target: str) -> SplitNet:
        """What all parties are told. ConfigError for settings or a cut that cannot be meant."""
        if not isinstance(self.model, nn.Module | str | None):
            raise ConfigError(
                "model should be an nn.Sequential, the name of a registered network, or None, "
                f"got {type(self.model).__name__}"
            )
        check_network(self.hidden, self.standardise, self.random_state)
        Settings.of(self, self._kind, self.epochs)
        told = {name: getattr(self, name) for name in SplitNet.model_fields if hasattr(self, name)}
        named = {
            "model": self.model if isinstance(self.model, str) else "mlp",
            "cut": cut_positions(self.cut),
        }
        parameters = program.read({**told, **named, "kind": self._kind, "target": target})
        parameters.check(self._modules().get("model"))
        return parameters

    def _keep(self, own: Mapping[str, Own]) -> None:
        """Set what is learnt, from the parts of the parties that are here."""
        clients = [party for party in own if party != SERVER]
        # Every client ends with the same layers; here one caller stands for all of them.
        self._own = {party: own[party] if party == SERVER else own[clients[0]] for party in own}
        self.parts_ = {SERVER if party == SERVER else CLIENT: part for party, part in self._own.items()}
        for part in self.parts_.values():
            if isinstance(part, ServerPart):
                self.server_model_ = part.layers.module
                self.n_features_in_ = part.columns
                continue
            self.client_model_ = part.model
            self.feature_names_in_ = np.asarray(part.columns, dtype=object)
            self.n_features_in_ = len(part.columns)
            if part.classes:
                self.classes_ = np.asarray(part.classes)

    def _check_fitted(self) -> None:
        if not hasattr(self, "parts_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit or load first")

    def _client_part(self) -> ClientPart:
        part = self.parts_.get(CLIENT)
        if not isinstance(part, ClientPart):
            raise ConfigError("this is the server's part, which knows no columns; predict at a client")
        return part

    def _outputs(self, data: pd.DataFrame | Tables) -> tuple[Array, pd.Index]:
        """The network's outputs for all rows, float32 (n, outputs), asked for over the lines; their index."""
        self._check_fitted()
        federation = Federation.of({CLIENT: data} if isinstance(data, pd.DataFrame) else data)
        asking = federation.here
        check_clients(asking)
        part = self._client_part()
        if not asking:
            raise ConfigError("no table is here to predict; predict where the rows are")
        parties = (*asking, SERVER)

        def seat(party: str) -> Seat:
            if party != SERVER:
                return Seat(party, parties, federation[party], self.id_, kept=part)
            if SERVER not in self.parts_:
                raise ConfigError("its part is not here: load all parts, or predict over the network")
            return Seat(party, parties, kept=self.parts_[SERVER])

        with bar(type(self).__name__) as report:
            run = federation.execute(
                *(program, "predict", self._parameters(self.target_), seat, parties),
                seed=int(self.random_state),
                on_progress=report,
                run=self.run_,
            )
        self.predict_ledger_ = run.ledger
        first, *others = (self._index(federation[name]) for name in asking)
        return np.concatenate([run.results[name] for name in asking]), first.append(others)

    def _index(self, table: pd.DataFrame) -> pd.Index:
        known = self.id_ is not None and self.id_ in table.columns
        return pd.Index(table[self.id_], name=self.id_) if known else table.index


class SplitClassifier(ClassifierMixin, _Split):
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
        return pd.DataFrame(probabilities(z), index, list(self._client_part().classes))


class SplitRegressor(RegressorMixin, _Split):
    """Predict a number with a network whose first layers a client holds, and the rest a server.

    As `SplitClassifier`, with a model (b, columns) -> (b, 1). The target is standardised inside; its mean and
    deviation stay among the clients, in the vanilla shape too.
    """

    _kind = "regression"

    def predict(self, data: pd.DataFrame | Tables) -> pd.Series:
        """Each row's number in the target's unit, float64; otherwise as `SplitClassifier.predict`."""
        z, index = self._outputs(data)
        scaler = self._client_part().target
        assert scaler is not None
        return pd.Series(scaler.inverse(z)[:, 0], index, name=self.target_)
