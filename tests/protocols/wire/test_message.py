"""A message says what it reveals, holds what it declares, and shows nothing of it."""

from __future__ import annotations

import pickle
from types import new_class
from typing import Annotated, Any, cast

import numpy as np
import pytest
from pydantic import ValidationError
from rich.pretty import pretty_repr

from protocols.arrays import Array, Arrays
from protocols.errors import ConfigError
from protocols.wire.message import OURS, Message, Spec, message_class

CANARY = "canary-71c4"


class Letters(Message, reveals="test: two arrays of one height"):
    x: Annotated[Array, Spec("float32", ("b", "k"))]
    y: Annotated[Array, Spec("int64|float32", ("b",))]
    z: Annotated[Array, Spec("bool", (3,))] | None = None


class Mixed(Message, reveals="test: a bit of everything", version=4):
    weights: Arrays = Arrays()
    raw: bytes = b""
    number: int | float | bool | str | None = None
    values: list[Any] = []  # noqa: RUF012  # pydantic copies defaults
    table: dict[str, Any] = {}  # noqa: RUF012


def letters(b: int = 2, k: int = 3, **changes: Any) -> Letters:
    fields = {"x": np.ones((b, k), np.float32), "y": np.arange(b), **changes}
    return Letters(**fields)


@pytest.mark.parametrize("said", ["", "   "])
def test_a_message_that_does_not_say_what_it_reveals_is_not_defined(said: str) -> None:
    with pytest.raises(TypeError, match="Silent: say what it reveals"):

        class Silent(Message, reveals=said):
            x: int


def test_a_subclass_says_anew_what_it_reveals() -> None:
    with pytest.raises(TypeError, match="say what it reveals"):

        class More(Letters):
            w: int


def test_two_messages_may_not_share_a_kind() -> None:
    class Twin(Message, reveals="test: first"):
        x: int

    fields = {"__module__": "tests.elsewhere", "__qualname__": "Twin", "__annotations__": {"x": int}}
    with pytest.raises(
        TypeError, match=r"tests\.Twin/1 is defined in tests\.protocols\.wire\.test_message already"
    ):
        new_class("Twin", (Message,), {"reveals": "test: second"}, lambda body: body.update(fields))
    assert message_class("tests.Twin/1") is Twin


@pytest.mark.parametrize("name", ["kind", "kinds", "reveals", "specs"])
@pytest.mark.filterwarnings("ignore:Field name")
def test_a_field_may_not_hide_what_every_message_has(name: str) -> None:
    fields = {"__module__": __name__, "__qualname__": "Hiding", "__annotations__": {name: str}}
    with pytest.raises((TypeError, AttributeError)):
        new_class("Hiding", (Message,), {"reveals": "test"}, lambda body: body.update(fields))


def test_an_array_without_dtype_and_shape_is_not_defined() -> None:
    with pytest.raises(TypeError, match=r"Bare\.x: use Annotated\[Array, Spec"):

        class Bare(Message, reveals="test"):
            x: Array


def test_a_dtype_that_there_is_not_is_not_defined() -> None:
    with pytest.raises(TypeError, match="flot"):

        class Typo(Message, reveals="test"):
            x: Annotated[Array, Spec("flot", ("b",))]


def test_kinds_carry_package_class_and_version() -> None:
    assert (Letters.kind, Mixed.kind) == ("tests.Letters/1", "tests.Mixed/4")
    assert message_class("tests.Mixed/4") is Mixed
    with pytest.raises(ConfigError, match="no message 'tests.Mixed/5'"):
        message_class("tests.Mixed/5")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"x": np.ones((2, 3))}, r"expected float32 \[b, k\], got float64 \[2, 3\]"),
        ({"x": np.ones((2, 3), ">f4")}, "got >f4"),
        ({"x": np.ones(2, np.float32)}, r"got float32 \[2\]"),
        ({"x": [[1.0]]}, "expected an array float32"),
        ({"y": np.arange(5)}, "y has b = 5, elsewhere it is 2"),
        ({"y": np.arange(2).astype("uint8")}, r"int64\|float32 \[b\]"),
        ({"z": np.array([True, False])}, r"bool \[3\]"),
        ({"extra": 1}, "Extra inputs are not permitted"),
    ],
)
def test_dtype_shape_and_letters_are_checked(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        letters(**changes)


def test_a_letter_binds_inside_one_array_and_in_optional_ones() -> None:
    class Square(Message, reveals="test"):
        x: Annotated[Array, Spec("float64", ("n", "n"))]
        y: Annotated[Array, Spec("float64", ("n",))] | None = None

    assert Square(x=np.eye(2)).y is None
    with pytest.raises(ValidationError, match="x has n = 3, elsewhere it is 2"):
        Square(x=np.ones((2, 3)))
    with pytest.raises(ValidationError, match="y has n = 3, elsewhere it is 2"):
        Square(x=np.eye(2), y=np.ones(3))


def test_nothing_in_a_message_can_be_changed() -> None:
    message = letters()
    with pytest.raises(ValidationError, match="frozen"):
        message.x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="read-only"):
        message.x[0, 0] = 5
    with pytest.raises(TypeError):
        cast(Any, Mixed(weights=Arrays({"w": np.ones(2)}))).weights["w"] = 1


def test_no_form_of_text_shows_a_value() -> None:
    number = 7134577
    message = Mixed(
        weights=Arrays({"w": np.array([float(number)])}),
        raw=CANARY.encode(),
        number=number,
        values=[CANARY],
        table={CANARY: CANARY},
    )
    forms = [repr(message), str(message), f"{message}", f"{message!r}", pretty_repr(message)]
    forms += [repr([message]), repr(letters(x=np.full((2, 3), number, np.float32)))]
    for form in forms:
        assert CANARY not in form and str(number) not in form
    assert repr(letters()) == "Letters(x=float32[2, 3], y=int64[2], z=NoneType)"


def test_a_refusal_does_not_show_what_was_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        Mixed(**cast(Any, {"weights": CANARY, "raw": 7134577, "values": CANARY, "table": CANARY}))
    assert CANARY not in str(caught.value) and "7134577" not in repr(caught.value)


def test_equality_and_hash_go_by_content() -> None:
    same = [letters(), letters(x=np.ones((3, 2), np.float32).T.copy())]
    assert same[0] == same[1] and len(set(same)) == 1
    others = [
        letters(3),
        letters(x=np.zeros((2, 3), np.float32)),
        letters(y=np.arange(2).astype(np.float32)),
        letters(z=np.ones(3, bool)),
    ]
    assert len({*same, *others}) == 5
    assert Mixed(number=1) != letters()


@pytest.mark.parametrize("pair", [(1, True), (1, 1.0), (0.0, -0.0), ("1", 1), (None, "None")])
def test_equality_tells_types_apart(pair: tuple[Any, Any]) -> None:
    a, b = (Mixed(values=[v]) for v in pair)
    assert a != b and hash(a) != hash(b)


def test_not_a_number_equals_itself() -> None:
    nan = float("nan")
    assert Mixed(number=nan) == Mixed(number=float("nan"))
    assert Mixed(weights=Arrays({"w": np.array([nan])})) == Mixed(weights=Arrays({"w": np.array([nan])}))


def test_a_message_survives_pickling() -> None:
    message = letters(z=np.ones(3, bool))
    assert pickle.loads(pickle.dumps(message)) == message  # noqa: S301  # our own bytes


def test_a_message_says_what_it_carries_in_the_clear_or_it_is_not_known() -> None:
    assert Letters.carries is None  # of no package of ours, and silent
    assert all(kind.carries is not None for kind in Message.kinds.values() if kind.kind.split(".")[0] in OURS)
    with pytest.raises(TypeError, match="should be a set of 'rows' and 'labels'"):

        class Wrong(Message, reveals="test", carries={"columns"}):
            pass

    with pytest.raises(TypeError, match="should be a set of 'rows' and 'labels'"):

        class Text(Message, reveals="test", carries="rows"):
            pass
