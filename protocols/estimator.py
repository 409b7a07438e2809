"""What estimators of all paradigms share: a run of their program, what it leaves, and its parts on disk.

Takes part: every party of a run, in one process, or over a network one. Each part on disk holds the digests
of the others, so that parts of different trainings are not put together; a digest is all that one party's
part says of another's.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd
from sklearn.exceptions import NotFittedError as _SklearnNotFitted
from torch import nn

from protocols.arrays import Array
from protocols.errors import ConfigError, DataError, VflError, marked
from protocols.federation import Federation
from protocols.parts import Part, digest, load_part, save_part
from protocols.party import Run
from protocols.policy.rules import Action
from protocols.programs import Parameters, Program, Seat
from protocols.progress import bar
from protocols.scores import Scoring, score
from protocols.settings import plain

if TYPE_CHECKING:
    from protocols.service.caller import Connected

    # scikit-learn ships no types, and a class whose base has none takes any argument.
    class BaseEstimator:
        """As scikit-learn's."""

        def get_params(self, deep: bool = True) -> dict[str, Any]: ...
        def set_params(self, **params: Any) -> Self: ...

    class ClassifierMixin:
        """As scikit-learn's."""

        score: Any

    class RegressorMixin:
        """As scikit-learn's."""

        score: Any
else:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

__all__ = ["ClassifierMixin", "Estimator", "NotFittedError", "RegressorMixin", "load_parts", "save_parts"]


def save_parts(store: Path, run: str | None, parts: Mapping[str, Part]) -> str:
    """Write every party's part as `<store>/<party>/<run>`, each with the digests of all others.

    Returns the run's id, drawn if none is given. Each part is written whole or not at all; errors as of
    `save_part`.
    """
    run = run or secrets.token_hex(8)
    digests = {party: digest(part) for party, part in parts.items()}
    for party, part in parts.items():
        others = {peer: said for peer, said in digests.items() if peer != party}
        save_part(store / party, run, replace(part, others=others))
    return run


def load_parts(store: Path, run: str, method: str, parties: Iterable[str] | None = None) -> dict[str, Part]:
    """The parts of `parties`, or of all that took part in the run, in the order of their names.

    Raises ConfigError for a part that is not there or of another method, DataError for one that is damaged
    or of another training; each says whose.
    """
    wanted = _parties(store, run) if parties is None else tuple(parties)
    parts: dict[str, Part] = {}
    for party in wanted:
        with marked(party, "load"):
            parts[party] = load_part(store / party, run)
            if parts[party].method != method:
                raise ConfigError(f"run {run!r} is of {parts[party].method}, expected {method}")
    digests = {party: digest(part) for party, part in parts.items()}
    for party, part in parts.items():
        with marked(party, "load"):
            if parties is None and (missing := [peer for peer in part.others if peer not in parts]):
                raise ConfigError(f"the part of {missing[0]} in run {run!r} is missing")
            for peer, found in digests.items():
                if peer != party and part.others.get(peer) != found:
                    raise DataError(f"run {run!r}: the part of {peer} is not of the same training")
    return parts


def _parties(store: Path, run: str) -> tuple[str, ...]:
    found = sorted(path.parent.parent.name for path in store.glob(f"*/{run}/part.json"))
    if not found:
        raise ConfigError(f"run {run!r} is at no party in {store}")
    return tuple(found)


class NotFittedError(VflError, _SklearnNotFitted):  # type: ignore[misc]  # sklearn has no stubs
    """`predict` was called before `fit`."""


class Estimator(BaseEstimator):
    """A program of parties behind scikit-learn's `fit`: what all estimators share.

    Those of one paradigm say how seats are filled and what is learnt; what each party here keeps is one
    dataclass, which its part on disk holds.
    """

    _program: Program[Any]
    _methods: ClassVar[Mapping[str, str]]  # kind of estimator -> its name on disk
    _kind: ClassVar[str]
    _owned: ClassVar[Any]  # (parameters, seat, what a role returned) -> `_kept`
    _kept: ClassVar[type]  # the dataclass that one party keeps, and its part holds
    _not_saved: ClassVar[tuple[str, ...]] = ()  # settings that a part does not hold
    random_state: int

    def _keep(self, own: dict[str, Any]) -> None:
        """Set the learnt attributes from what each party here keeps, after training and after loading."""
        self._own = own

    def _recall(self, part: Part) -> Any:
        """Read back from a part what `_owned` returned."""
        return part.read(self._kept)

    def _says_settings(self, own: Any) -> bool:
        """Return whether the part of a party that keeps `own` also holds the settings."""
        return True

    def _execute(
        self,
        data: Federation | Connected,
        action: Action,
        parameters: Parameters,
        seat: Callable[[str], Seat],
        parties: Sequence[str],
        *,
        run: str = "",
    ) -> Run:
        """Run one action of the program; `run` is the training that it starts from."""
        with bar(type(self).__name__) as on_progress:
            return data.execute(
                self._program,
                action,
                parameters,
                seat,
                parties,
                seed=int(self.random_state),
                on_progress=on_progress,
                run=run,
            )

    def _train(
        self,
        data: Federation | Connected,
        parameters: Parameters,
        seat: Callable[[str], Seat],
        parties: Sequence[str],
        *,
        run: str = "",
    ) -> Mapping[str, Any]:
        """Train, set what every fitted estimator has, and return the results of the roles run here."""
        done = self._execute(data, "fit", parameters, seat, parties, run=run)
        self.ledger_, self.run_ = done.ledger, done.job
        self._keep({party: self._owned(parameters, seat(party), got) for party, got in done.results.items()})
        return done.results

    def _fitted(self) -> dict[str, Any]:
        """Return what each party in this process keeps."""
        if not hasattr(self, "_own"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted; call fit first")
        return self._own

    def score(
        self, data: Any, y: object = None, *, scoring: Scoring = None, sample_weight: object = None
    ) -> float:
        """How well the model predicts the rows of `data`, which holds what `predict` takes.

        y: the truth, one value for each row; by default the target column of the tables. scoring: by name one
        of scikit-learn's scorers, as "roc_auc", or such a function of an estimator, X and y; by default
        accuracy for classes, R^2 for numbers, and for counts the share of the Poisson deviance that is
        explained (D^2). y and sample_weight: a Series whose index has the name of the id column is matched by
        id, one with the table's own index by that; anything else stands in the order of the table, in
        vertical models the label party's. Rows that no prediction is for do not count.

        Raises DataError for a truth that does not fit the rows or the model.
        """
        truth, response, weights = self._judged(data, y, sample_weight)
        return score(
            truth, response, getattr(self, "classes_", None), scoring or self._usual_scoring(), weights
        )

    def _usual_scoring(self) -> Scoring:
        """What `score` judges by unless it is told."""
        raise NotImplementedError

    def _judged(self, data: Any, y: object, sample_weight: object) -> tuple[pd.Series, Array, Array | None]:
        """(truth (n,), response (n, classes) or (n, 1), weights (n,)) of the rows that are predicted."""
        raise NotImplementedError

    def save(self, store: str | Path, run: str | None = None) -> str:
        """Write each party's own part to `<store>/<party>/<run>/`; returns the run's id.

        After a run between processes there is one part here, this party's. Modules that were brought are
        saved as weights alone. What happened (`ledger_` and the like) is not saved.
        """
        own = self._fitted()
        settings = {
            name: _without_code(self._write(value))
            for name, value in self.get_params(deep=False).items()
            if name not in self._not_saved
        }
        parts = {
            party: Part.of(self._method(), party, held, settings if self._says_settings(held) else {})
            for party, held in own.items()
        }
        return save_parts(Path(store), run, parts)

    @classmethod
    def load(cls, store: str | Path, run: str) -> Self:
        """Load what `save` wrote into an estimator that is ready to predict.

        Raises ConfigError for a run that is not there, DataError for parts that are damaged or do not
        belong together.
        """
        return cls._loaded(store, run)

    @classmethod
    def _loaded(cls, store: str | Path, run: str, party: str | None = None, **brought: Any) -> Self:
        """Load as `load` does, but only one party's part if named. brought: settings that are modules."""
        parts = load_parts(Path(store), run, cls._method(), None if party is None else [party])
        made = cls(**_settings_in(run, parts, cls._read, brought))
        own: dict[str, Any] = {}
        for party, part in parts.items():
            with marked(party, "load"):
                own[party] = made._recall(part)
        made.run_ = run
        made._keep(own)
        return made

    @classmethod
    def _write(cls, value: Any) -> Any:
        """Convert a setting, which holds no module, to the form stored in a part."""
        return value

    @classmethod
    def _read(cls, name: str, value: Any) -> Any:
        """Convert a setting from the form stored in a part to what the constructor takes."""
        return tuple(value) if isinstance(value, list) else value

    @classmethod
    def _method(cls) -> str:
        return cls._methods[cls._kind]


def _without_code(value: Any) -> Any:
    """Return a setting as a part stores it: for a module, only the fact that there was one."""
    if isinstance(value, nn.Module):
        return {"module": type(value).__name__}
    if isinstance(value, Mapping):
        return {name: _without_code(each) for name, each in value.items()}
    return plain(value)


def _settings_in(
    run: str, parts: Mapping[str, Part], read: Callable[[str, Any], Any], brought: Mapping[str, Any]
) -> dict[str, Any]:
    """What the estimator was made with, as far as a part says it; what is absent is as by default.

    DataError unless a part says it, and no other says otherwise. ConfigError for a module that was brought
    then and is not now.
    """
    found = {party: part.settings for party, part in parts.items() if part.settings}
    if len({repr(sorted(settings.items())) for settings in found.values()}) != 1:
        raise DataError(f"{len(found)} parts of run {run!r} hold settings, expected one, or the same in all")
    party, settings = next(iter(found.items()))
    with marked(party, "load"):
        for name, value in settings.items():
            _check_brought(name, value, brought.get(name))
    given = {name: value for name, value in brought.items() if value is not None}
    return {name: read(name, value) for name, value in settings.items() if not _is_module(value)} | given


def _is_module(value: Any) -> bool:
    return isinstance(value, dict) and any(key == "module" or _is_module(each) for key, each in value.items())


def _check_brought(name: str, value: Any, given: Any) -> None:
    if not _is_module(value):
        return
    if "module" in value:
        wanted = [] if given is not None else [f"{name}=module"]
    else:
        lacking = [key for key, each in value.items() if _is_module(each) and key not in (given or {})]
        wanted = [f"{name}={{{key!r}: module}}" for key in lacking]
    if wanted:
        raise ConfigError(
            f"{name} was a network of the caller's own, whose code is not saved; bring the saved one, or one "
            f"of its shape: pass {', '.join(wanted)}"
        )
