"""What all parties of a boosted model are told before it begins: its parameters, nobody's secret."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from protocols.data.tables import Kind
from protocols.errors import ConfigError
from protocols.hazmat.paillier import Paillier, Plain
from protocols.programs import Parameters
from protocols.psi.choose import Once
from protocols.psi.ids import Rule
from protocols.trees.bins import MOST_BINS
from protocols.trees.splits import Rules
from vfl.alignment.roles import feature_parties

Fraction = Annotated[float, Field(gt=0, le=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PredictProtocol = Literal["levels", "bitmask"]


class Boosting(Parameters):
    """As the parameters of the estimators, which describe them."""

    label_party: str
    kind: Kind
    loss: Literal["squared", "poisson"] = "squared"  # of regression
    n_estimators: Annotated[int, Field(ge=1, le=100_000)] = 100
    begin: Annotated[int, Field(ge=0)] = 0  # rounds of a model that is continued
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    max_depth: Annotated[int, Field(ge=1, le=16)] = 5
    max_bins: Annotated[int, Field(ge=2, le=MOST_BINS)] = 32
    l2_regularization: Amount = 1.0
    min_child_weight: Amount = 1.0
    min_samples_leaf: Annotated[int, Field(ge=1)] = 10
    min_samples_split: Annotated[int, Field(ge=2)] = 20
    min_gain: Amount = 0.0
    subsample: Fraction = 1.0
    colsample: Fraction = 1.0
    top_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    other_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    complete_secure: bool = False
    early_stopping: bool = False
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    n_iter_no_change: Annotated[int, Field(ge=1)] = 10
    tol: Amount = 0.0
    gradient_bits: Annotated[int, Field(ge=4, le=24)] = 16
    encryption: Literal["paillier", "plain"] = "paillier"
    key_bits: Annotated[int, Field(ge=128, le=8192)] = 2048
    small_key: bool = False
    backend: Literal["auto", "gmpy2", "ifma", "fma"] = "auto"
    predict_protocol: PredictProtocol = "levels"
    duplicates: Literal["error", "first"] = "error"
    normalise: tuple[Rule, ...] = ()
    protocol: Once = "auto"
    may_be_empty: bool = False  # when predicting: no common row is no error

    @model_validator(mode="after")
    def _one_way_of_drawing(self) -> Self:
        if self.goss and (self.top_rate + self.other_rate > 1 or not self.other_rate or not self.top_rate):
            raise ValueError("top_rate and other_rate go together, are above 0, and add up to at most 1")
        if self.goss and self.subsample < 1:
            raise ValueError("subsample and GOSS (top_rate, other_rate) exclude each other; choose one")
        return self

    @property
    def goss(self) -> bool:
        """Whether rows are drawn by the size of their gradients."""
        return bool(self.top_rate or self.other_rate)

    @property
    def draws(self) -> bool:
        """Whether each round learns from other rows."""
        return self.goss or self.subsample < 1

    @property
    def is_plain(self) -> bool:
        """Whether what leaves could be read by whoever sees it."""
        return self.encryption == "plain" or self.small_key

    @property
    def rules(self) -> Rules:
        """What a split has to meet."""
        return Rules(self.l2_regularization, self.min_child_weight, self.min_samples_leaf, self.min_gain)

    @property
    def scheme(self) -> Paillier | None:
        """How gradients are encrypted; None if they are not."""
        if self.encryption == "plain":
            return None
        return Paillier(self.key_bits, self.backend, self.small_key)

    def peers(self, parties: Sequence[str]) -> tuple[str, ...]:
        """The feature parties. ConfigError where the label party takes no part, or alone."""
        return feature_parties(parties, self.label_party)


def encryption_fields(encryption: object) -> dict[str, Any]:
    """What `Boosting` is told of an estimator's encryption. ConfigError for what is none."""
    if isinstance(encryption, Plain):
        return {"encryption": "plain", "key_bits": encryption.bits}
    if isinstance(encryption, Paillier):
        return {
            "encryption": "paillier",
            "key_bits": encryption.bits,
            "small_key": encryption.small_key,
            "backend": encryption.backend,
        }
    raise ConfigError(
        f"encryption={encryption!r} should be Paillier(...), or Plain() to encrypt nothing; both are in "
        "protocols.hazmat.paillier"
    )
