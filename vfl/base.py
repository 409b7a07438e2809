"""What vertical estimators share: who sits where, what a run leaves, and rows in the label party's order.

Takes part: the party that the target names (the label party) and every other party. Who learns what is told
where the roles are: `vfl.align` and each model's own module.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from protocols.arrays import Array
from protocols.data.tables import column, split_target
from protocols.errors import ConfigError, DataError, marked, nearest
from protocols.estimator import NotFittedError
from protocols.federation import Federation
from protocols.programs import Parameters, Program, Seat
from protocols.progress import bar
from vfl.alignment.roles import Aligned, AlignmentReport, feature_parties, id_columns, report

Data = Mapping[str, pd.DataFrame] | Federation
F = TypeVar("F", pd.DataFrame, pd.Series)


class Vertical(BaseEstimator):
    """A vertical estimator.

    From "fit" its program's roles return tuples that end with their `Aligned`. From "predict" the label party
    returns (outputs (k, outputs), its `Aligned`), and each other party its `Aligned`.
    """

    _program: Program[Any]
    random_state: int
    unmatched: Literal["drop", "nan"]

    def _parameters(self, owner: str, parties: Sequence[str], *, may_be_empty: bool = False) -> Parameters:
        """What all parties are told. ConfigError for settings that do not fit."""
        raise NotImplementedError

    def _owned(self, parameters: Any, seat: Seat, held: Any) -> Any:
        """What a party keeps of what its role returned from "fit"; with `id` and `target` at the label
        party."""
        raise NotImplementedError

    def _brought(self, party: str, owner: str) -> dict[str, Any]:
        """What the caller brings for one party, as fields of its `Seat`."""
        return {}

    def _from(self) -> str:
        """The run that training starts from; "" for none."""
        return ""

    def _fit(self, data: Data, target: str, id: str | Mapping[str, str], sample_weight: object = None) -> Any:
        """Train; sets what every fitted estimator has, and returns what the label party keeps.

        sample_weight: a number for each row of the label party's table, in its order; None for all alike.
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
        with marked(owner, "fit"):
            column(federation[owner], target_column, "target")
            weights = None if sample_weight is None else weights_of(sample_weight, len(federation[owner]))

        def seat(party: str) -> Seat:
            mine = (target_column, weights) if party == owner else (None, None)
            return Seat(party, parties, federation[party], names[party], *mine, **self._brought(party, owner))

        with bar(type(self).__name__) as on_progress:
            run = federation.execute(
                self._program,
                "fit",
                parameters,
                seat,
                parties,
                seed=self.random_state,
                on_progress=on_progress,
                run=self._from(),
            )
        self.parts_ = {
            party: self._owned(parameters, seat(party), held) for party, held in run.results.items()
        }
        self.parties_, self.label_party_, self.run_ = parties, owner, run.job
        aligned: dict[str, Aligned] = {party: result[-1] for party, result in run.results.items()}
        self.alignment_: AlignmentReport = report(owner, aligned, parties)
        self.ledger_ = run.ledger
        return self.parts_[owner]

    def _outputs(self, data: Data) -> tuple[Data, Array, Array]:
        """(federation, the model's outputs (k, outputs), the label party's rows (k,) they are for)."""
        parts, owner = self._fitted(), self.label_party_
        if self.unmatched not in ("drop", "nan"):
            raise ConfigError(f'unmatched={self.unmatched!r} should be "drop" or "nan"')
        federation = Federation.of(data)
        _check_parties(federation.parties, self.parties_)
        lacking = [party for party in federation.here if party not in parts]
        if lacking:
            raise ConfigError(
                f"the parts of {', '.join(lacking)} are not here: they were trained over a network; predict "
                f"over it, connected as {', '.join(parts)}"
            )
        parameters = self._parameters(owner, federation.parties, may_be_empty=self.unmatched == "nan")

        def seat(party: str) -> Seat:
            return Seat(party, self.parties_, federation[party], kept=parts[party])

        with bar(type(self).__name__) as on_progress:
            run = federation.execute(
                *(self._program, "predict", parameters, seat, self.parties_),
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

    def _saved_as(self, run: str | None) -> str | None:
        """The run to save as. Over a network it is the training's, by which the others know their parts.

        ConfigError for another name there.
        """
        if set(self._fitted()) == set(self.parties_):
            return run
        if run not in (None, self.run_):
            raise ConfigError(
                f"run={run!r}: the other parties know this training as {self.run_!r}; leave run out"
            )
        return self.run_

    def _fitted(self) -> dict[str, Any]:
        if not hasattr(self, "parts_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted; call fit first")
        return self.parts_


def weights_of(given: object, rows: int) -> Array:
    """`given` as float64 (rows,). DataError unless each row has one, none is negative and some are not 0."""
    try:
        weights = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise DataError(
            f"sample_weight should be one number for each row, got a {type(given).__name__} that holds none"
        ) from None
    if weights.shape != (rows,):
        raise DataError(
            f"sample_weight should have one number for each of the table's {rows} rows, got shape "
            f"{list(weights.shape)}"
        )
    wrong = int(np.count_nonzero(~(np.isfinite(weights) & (weights >= 0))))
    if wrong or not weights.any():
        raise DataError(
            f"of {rows} sample weights {wrong} are negative, infinite or missing, and "
            f"{np.count_nonzero(weights)} are not 0; none should be the first, and some the second"
        )
    return weights


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
