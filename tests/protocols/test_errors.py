"""Errors say where, once, and survive the journey."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import sklearn.exceptions

from protocols import errors
from protocols.errors import ConfigError, DataError, PartyError, VflError, marked, nearest
from protocols.estimator import NotFittedError

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, VflError)]


@pytest.mark.parametrize("kind", TREE)
def test_every_error_prints_party_and_scope_first(kind: type[VflError]) -> None:
    assert str(kind("why")) == "why"
    error = kind("why").at("bank", "fit/3")
    assert str(error) == "bank/fit/3: why" and isinstance(error, kind)
    assert str(error.at("shop", "later")) == "bank/fit/3: why"
    assert str(kind("why").at("bank", "")) == "bank: why"


def test_an_error_of_ours_is_marked_where_it_is_raised_and_no_other_is() -> None:
    with pytest.raises(DataError, match=r"^bank/fit: why$"), marked("bank", "fit"):
        raise DataError("why")
    with pytest.raises(DataError, match=r"^shop/psi: why$"), marked("bank", "fit"), marked("shop", "psi"):
        raise DataError("why")
    with pytest.raises(ValueError, match=r"^why$"), marked("bank", "fit"):
        raise ValueError("why")


@pytest.mark.parametrize("kind", TREE)
def test_every_error_survives_copying_and_pickling(kind: type[VflError]) -> None:
    error = kind("why").at("bank", "fit")
    for back in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301  # our own bytes
        assert type(back) is kind and str(back) == "bank/fit: why"


def test_errors_are_what_a_caller_would_catch() -> None:
    assert issubclass(ConfigError, ValueError) and issubclass(DataError, ValueError)
    assert issubclass(NotFittedError, sklearn.exceptions.NotFittedError)
    assert not issubclass(PartyError, ValueError)


def test_every_error_is_drawn_in_the_tree() -> None:
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in TREE)


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("Serber", ["client", "Server"], "; did you mean 'Server'?"),
        ("LIMIT", ["limit"], "; did you mean 'limit'?"),
        ("zzz", ["client", "server"], ""),
        ("a", [], ""),
        (
            "default",
            ["LIMIT_BAL", "default.payment.next.month"],
            "; did you mean 'default.payment.next.month'?",
        ),
        (
            "Payment",
            ["LIMIT_BAL", "default.payment.next.month"],
            "; did you mean 'default.payment.next.month'?",
        ),
        ("id", ["residence", "customer_id"], "; did you mean 'customer_id'?"),
        ("amount_in_euros_of_the_loan", ["amount", "amount_in"], "; did you mean 'amount_in'?"),
        ("a", ["amount"], ""),
        ("", ["amount"], ""),
    ],
)
def test_the_nearest_known_name_is_offered(name: str, known: list[str], said: str) -> None:
    assert nearest(name, known) == nearest(name, iter(known)) == said
