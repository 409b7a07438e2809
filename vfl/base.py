"""What vertical estimators share: who sits where, what a run leaves, and rows in the label party's order.

Takes part: the party that the target names (the label party) and every other party. Who learns what is told
where the roles are: `vfl.align` and each model's own module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import pandas as pd

from protocols.arrays import Array
from protocols.data.tables import column, split_target
from protocols.errors import ConfigError, DataError, marked, nearest
from protocols.estimator import ClassifierMixin, Estimator, RegressorMixin
from protocols.federation import Federation
from protocols.hazmat.paillier import Paillier, Plain
from protocols.packing import unpack
from protocols.programs import Seat
from protocols.psi.choose import check_protocol
from protocols.psi.ids import Normalise, check_rules
from protocols.scores import Scoring, placed, weights_of
from vfl.alignment.roles import Aligned, AlignmentReport, feature_parties, id_columns, report

Data = Mapping[str, pd.DataFrame] | Federation
F = TypeVar("F", pd.DataFrame, pd.Series)


@dataclass(kw_only=True, eq=False, repr=False)
class Vertical(Estimator):
    """A vertical estimator.

    From "fit" its program's roles return tuples that end with their `Aligned`. From "predict" the label party
    returns (outputs (k, outputs), its `Aligned`), and each other party its `Aligned`. What a party keeps has
    an `id`, and at the label party a `target`.

    Parameters
    ----------
    duplicates: "error", or "first" to let the first row of a repeated id stand for it.
    normalise: what every party does to its ids before they are compared, any of "strip", "casefold" and
        "digits"; see `vfl.align`.
    protocol: by which two parties compare their ids, "ecdh", "kkrt", or "auto", which chooses by their
        number and by what the parties' policies let be taken; see `vfl.align`.
    unmatched: whether `predict` leaves out the label party's rows that not every party knows ("drop"), or
        lists them without a prediction ("nan"). So it does with rows left out by duplicates="first".
    random_state: see each model.
    """

    _not_told: ClassVar[tuple[str, ...]] = ("unmatched", "random_state")  # each party has them by itself

    duplicates: Literal["error", "first"] = "error"
    normalise: Normalise = ()
    protocol: Literal["auto", "ecdh", "kkrt"] = "auto"
    unmatched: Literal["drop", "nan"] = "drop"
    random_state: int = 0

    def _parameters(self, owner: str, parties: Sequence[str], *, may_be_empty: bool = False) -> Any:
        """What all parties are told. ConfigError for settings that do not fit."""
        check_protocol(self.protocol, False, len(parties))
        told = {name: v for name, v in self.get_params(deep=False).items() if name not in self._not_told}
        told |= {"label_party": owner, "normalise": check_rules(self.normalise), "may_be_empty": may_be_empty}
        told |= self._told()
        return self._program.read(told)

    def _told(self) -> dict[str, Any]:
        """What parties are told in other words than an estimator's settings, or besides."""
        raise NotImplementedError

    def _set_learnt(self, own: Any) -> None:
        """Set what a kind of model has learnt, from what the label party keeps."""

    def _everybody(self, own: Any) -> Sequence[str]:
        """All parties, from what the label party keeps."""
        raise NotImplementedError

    def _brought(self, party: str, owner: str) -> dict[str, Any]:
        """What the caller brings for one party, as fields of its `Seat`."""
        return {}

    def _from(self) -> str:
        """The run that training starts from; "" for none."""
        return ""

    def _fit(
        self, data: Data, target: str, id: str | Mapping[str, str], sample_weight: object = None
    ) -> None:
        """Train; sets what every fitted estimator has.

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

        results = self._train(federation, parameters, seat, parties, run=self._from())
        aligned: dict[str, Aligned] = {party: result[-1] for party, result in results.items()}
        self.parties_ = parties
        self.alignment_: AlignmentReport = report(owner, aligned, parties)

    def _keep(self, own: dict[str, Any]) -> None:
        super()._keep(own)
        self.parts_ = own
        owners = [party for party, one in own.items() if self._says_settings(one)]
        if len(owners) != 1:
            raise DataError(f"{len(owners)} parts are a label party's, expected one")
        self.label_party_ = owners[0]
        self.parties_ = tuple(self._everybody(own[owners[0]]))
        self._set_learnt(own[owners[0]])

    def _says_settings(self, own: Any) -> bool:
        return bool(own.target)  # the label party's

    @classmethod
    def _read(cls, name: str, value: Any) -> Any:
        if name == "encryption":
            return unpack(Paillier if "backend" in value else Plain, value, {})
        return super()._read(name, value)

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

        run = self._execute(federation, "predict", parameters, seat, self.parties_, run=self.run_)
        outputs, aligned = run.results[owner]
        self.predict_ledger_ = run.ledger
        self.predict_alignment_ = report(owner, run.results | {owner: aligned}, self.parties_)
        return federation, outputs, aligned.rows

    def _response(self, outputs: Array) -> Array:
        """Each row's probabilities (k, classes), or its expected value (k, 1)."""
        raise NotImplementedError

    def _placed(self, data: Data, made: Callable[[Array], F]) -> F:
        """What `made` gives for the response of the rows, in the label party's order, indexed by its ids."""
        federation, outputs, rows = self._outputs(data)
        name = self.parts_[self.label_party_].id
        ids = federation[self.label_party_][name]
        predicted = made(self._response(outputs)).set_axis(rows).sort_index()
        if self.unmatched == "nan":
            predicted = predicted.reindex(np.arange(len(ids)))
        return predicted.set_axis(pd.Index(ids.iloc[predicted.index.to_numpy()], name=name))

    def _named(self, values: Array) -> pd.Series:
        return pd.Series(values, name=self.parts_[self.label_party_].target)

    def _judged(self, data: Data, y: object, sample_weight: object) -> tuple[pd.Series, Array, Array | None]:
        federation, outputs, rows = self._outputs(data)
        owner, order = self.label_party_, np.sort(rows)
        if owner not in federation:
            raise ConfigError(f"the label is at {owner}, whose table is not here")
        table = federation[owner]
        ids = table[self.parts_[owner].id]
        with marked(owner, "score"):
            if y is None:
                truth = column(table, self.parts_[owner].target, "target")
            else:
                truth = placed(y, ids, table.index, "y")
            weights = None
            if sample_weight is not None:
                given = placed(sample_weight, ids, table.index, "sample_weight")
                weights = weights_of(given, len(table))[order]
        return truth.iloc[order], self._response(outputs[np.argsort(rows)]), weights

    def save(self, store: str | Path, run: str | None = None) -> str:
        """Write each party's own part to `<store>/<party>/<run>/`; returns the run's id.

        Of a model that was trained over a network it is this party's part alone, and `run` the training's, by
        which the others know their parts. Settings go with the label party's part; modules that were brought
        are saved as weights alone. What happened (`ledger_`, `alignment_`) is not saved.
        """
        if set(self._fitted()) == set(self.parties_):
            return super().save(store, run)
        if run not in (None, self.run_):
            raise ConfigError(
                f"run={run!r}: the other parties know this training as {self.run_!r}; leave run out"
            )
        return super().save(store, self.run_)


class VerticalClassifier(ClassifierMixin, Vertical):
    """Predicts classes."""

    score = Estimator.score  # and not scikit-learn's, whose second argument is needed
    classes_: Array

    def _usual_scoring(self) -> Scoring:
        return "accuracy"

    def predict(self, data: Data) -> pd.Series:
        """The likeliest class of each row, indexed by id, in the label party's row order.

        data: every party's table, aligned anew; the target is not looked at. Sets `predict_alignment_` and
        `predict_ledger_`. Raises ConfigError where a party is missing, else as `fit`.
        """
        return self._placed(data, lambda chances: self._named(self.classes_[chances.argmax(axis=1)]))

    def predict_proba(self, data: Data) -> pd.DataFrame:
        """Each row's probability of each class (columns are `classes_`); otherwise as `predict`."""
        return self._placed(data, lambda chances: pd.DataFrame(chances, columns=list(self.classes_)))


class VerticalRegressor(RegressorMixin, Vertical):
    """Predicts numbers."""

    score = Estimator.score  # and not scikit-learn's, whose second argument is needed

    def _usual_scoring(self) -> Scoring:
        return "r2"

    def predict(self, data: Data) -> pd.Series:
        """The expected value of each row, indexed by id, in the label party's row order.

        data: every party's table, aligned anew; the target is not looked at. Sets `predict_alignment_` and
        `predict_ledger_`. Raises ConfigError where a party is missing, else as `fit`.
        """
        return self._placed(data, lambda values: self._named(values[:, 0]))


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
