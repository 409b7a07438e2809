"""What all parties of a linear model are told before it begins: its parameters, nobody's secret."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from protocols.hazmat.paillier import Paillier, Plain
from protocols.programs import Parameters
from protocols.psi.choose import Once
from protocols.psi.ids import Rule
from vfl.alignment.roles import feature_parties

Family = Literal["logistic", "linear", "poisson"]
Solver = Literal["lbfgs", "sgd"]
Security = Literal["exact", "hidden", "plain"]
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class VerticalLinear(Parameters):
    """As the parameters of the estimators, which describe them."""

    label_party: str
    family: Family
    l2: Amount = 1e-3
    l1: Amount = 0.0
    solver: Solver = "lbfgs"
    max_iter: Count = 100
    tol: Amount = 1e-6
    batch_size: Count = 4096
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    security: Security = "exact"
    key_bits: Annotated[int, Field(ge=128, le=8192)] = 2048
    small_key: bool = False
    backend: Literal["auto", "ifma", "fma", "gmpy2"] = "auto"
    standardise: bool = True
    early_stopping: bool = False
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    n_iter_no_change: Count = 5
    warm_start: bool = False
    duplicates: Literal["error", "first"] = "error"
    normalise: tuple[Rule, ...] = ()
    protocol: Once = "auto"
    may_be_empty: bool = False  # when predicting: no common row is no error

    @property
    def encryption(self) -> Paillier:
        """How those who encrypt do."""
        return Paillier(self.key_bits, self.backend, self.small_key)

    @property
    def keys(self) -> Paillier | Plain:
        """Who makes keys."""
        return Plain(self.key_bits) if self.security == "plain" else self.encryption

    @property
    def rehearsals(self) -> int:
        """How often residuals are told before the first step: of a good start the gradient is small, so they
        have to be known finely."""
        return 3 if self.warm_start else 0

    @property
    def is_plain(self) -> bool:
        """Whether what leaves could be read by whoever sees it."""
        return self.security == "plain" or self.small_key

    def peers(self, parties: Sequence[str]) -> tuple[str, ...]:
        """The feature parties. ConfigError where the label party takes no part, or alone."""
        return feature_parties(parties, self.label_party)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.security != "hidden":
            return self
        if self.family == "poisson":
            raise ValueError(
                'security="hidden" needs a residual that is linear in the score; Poisson has none'
            )
        if self.early_stopping:
            raise ValueError(
                'early_stopping needs the scores of rows that are held out, and security="hidden" shows '
                "nobody a score; choose max_iter and tol"
            )
        return self
