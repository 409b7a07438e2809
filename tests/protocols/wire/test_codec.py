"""What is encoded is decoded; any other bytes raise ProtocolError, and allocate nothing large."""

from __future__ import annotations

import json
import math
import struct
import tracemalloc
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocols.arrays import Array, Arrays
from protocols.errors import ConfigError, ProtocolError
from protocols.wire.codec import DTYPES, MAX_HEADER, decode, encode
from protocols.wire.message import Message, Spec

CANARY = "canary-71c4"


class Anything(Message, reveals="test: any JSON value"):
    value: Any


class Tensors(Message, reveals="test: named arrays and bytes"):
    named: Arrays
    raw: bytes


class Table(Message, reveals="test: typed JSON"):
    counts: dict[str, int] = {}  # noqa: RUF012  # pydantic copies defaults
    flag: bool | int | float | str | None = None


class Pair(Message, reveals="test: two arrays"):
    x: Annotated[Array, Spec("float32|float64", ("b", "k"))]
    y: Annotated[Array, Spec("bool", ("b",))]


class OtherPair(Message, reveals="test: the same fields in another class"):
    x: Annotated[Array, Spec("float32", ("b", "k"))]
    y: Annotated[Array, Spec("bool", ("b",))]


KINDS: list[type[Message]] = [Anything, Tensors, Table, Pair]


def body(header: bytes | Any, tail: bytes = b"") -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<I", len(head)) + head + tail


_text = st.text(st.characters(exclude_categories=["Cs"]))
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats() | _text,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(_text.filter(lambda k: not k.startswith("$")), inner, max_size=4)
    ),
    max_leaves=12,
)
_dtypes = st.sampled_from([*DTYPES.values(), *(d.newbyteorder(">") for d in DTYPES.values())])
_arrays = st.one_of(
    hnp.arrays(_dtypes, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)),
    hnp.arrays(_dtypes, hnp.array_shapes(min_dims=2, max_dims=3)).map(np.asfortranarray),
    hnp.arrays(_dtypes, hnp.array_shapes(min_dims=1, max_dims=3, min_side=2)).map(lambda a: a[::-2]),
)


@given(_json)
@example(float("nan"))
@example([math.inf, -math.inf, -0.0])
@example({"": {"$": 1}})
def test_json_values_come_back(value: Any) -> None:
    assert decode(Anything, encode(Anything(value=value))) == Anything(value=value)


@given(st.dictionaries(_text, _arrays, max_size=4), st.binary(max_size=40))
def test_named_arrays_and_bytes_come_back(arrays: dict[str, Array], raw: bytes) -> None:
    back = decode(Tensors, encode(Tensors(named=Arrays(arrays), raw=raw)))
    assert back.raw == raw and list(back.named) == list(arrays)
    for name, array in arrays.items():
        got = back.named[name]
        assert got.dtype == array.dtype.newbyteorder("<") and got.shape == array.shape
        assert got.tobytes() == np.ascontiguousarray(array.astype(got.dtype)).tobytes()
        assert not got.flags.writeable


@given(st.integers(0, 5), st.integers(0, 5), st.sampled_from(["float32", "float64"]))
def test_declared_arrays_come_back_read_only(b: int, k: int, dtype: str) -> None:
    sent = Pair(x=np.arange(b * k).reshape(b, k).astype(dtype), y=np.arange(b) % 2 == 0)
    back = decode(Pair, encode(sent))
    assert back == sent
    with pytest.raises(ValueError, match="read-only"):
        back.x[...] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        back.x.flags.writeable = True


def test_a_numpy_subclass_or_view_is_sent_by_its_content() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    sent = Pair(x=x.T[::2], y=np.broadcast_to(np.array(True), (2,)))
    assert decode(Pair, encode(sent)) == sent


def test_encoding_is_a_function_of_the_content() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    a, b = (Pair(x=v, y=np.ones(2, bool)) for v in (x, np.asfortranarray(x)))
    assert encode(a) == encode(b)


@pytest.mark.parametrize("order", [(1, 1.0, True), (True, 1.0, 1), (0.0, -0.0, False, 0)])
def test_remembered_headers_never_confuse_values(order: tuple[Any, ...]) -> None:
    for _ in range(2):
        for value in order:
            back = decode(Table, encode(Table(flag=value))).flag
            assert repr(back) == repr(value)


def test_remembered_headers_never_confuse_classes() -> None:
    x, y = np.ones((2, 3), np.float32), np.ones(2, bool)
    pair, other = Pair(x=x, y=y), OtherPair(x=x, y=y)
    for _ in range(2):
        assert type(decode(Pair, encode(pair))) is Pair
        assert type(decode(OtherPair, encode(other))) is OtherPair
    double = encode(Pair(x=x.astype(np.float64), y=y))
    assert decode(Pair, double).x.dtype == np.float64
    with pytest.raises(ProtocolError, match="float64"):
        decode(OtherPair, double)


def test_a_decoded_list_can_be_changed_without_changing_the_next() -> None:
    sent = encode(Anything(value=[1, {"a": [2]}]))
    first = decode(Anything, sent)
    first.value[1]["a"].append("spoilt")
    assert decode(Anything, sent).value == [1, {"a": [2]}]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    refused_or_message(data)


@given(st.binary(max_size=100), st.binary(max_size=64))
def test_any_header_is_a_message_or_a_protocol_error(header: bytes, tail: bytes) -> None:
    refused_or_message(body(header, tail))


_sizes = st.one_of(
    st.integers(-2, 5), st.sampled_from([2**31, 2**40, 2**63, 10**30, True, 1.0, None, "2"]), st.floats()
)
_claim = st.tuples(
    st.sampled_from([*DTYPES, "O", "|O", "<c16", "<U4", "V8", "<M8[ns]", "f4,f4", "", None, 3]),
    st.lists(_sizes, max_size=10) | _sizes,
)
_headers = st.dictionaries(
    st.sampled_from(["value", "named", "raw", "counts", "flag", "x", "y", "self", "kind", ""]),
    st.one_of(
        _json,
        st.builds(lambda c: {"$": c}, _claim | _json),
        st.builds(lambda n, c: {"$named": [[n, *c], [n, *c]]}, _text | st.none(), _claim),
        st.builds(lambda c: {"$named": c}, _json),
        st.builds(lambda n: {"$bytes": n}, _sizes),
    ),
    max_size=4,
)


@given(_headers, st.binary(max_size=64))
def test_any_structured_header_is_a_message_or_a_protocol_error(header: Any, tail: bytes) -> None:
    refused_or_message(body(header, tail))


_VALID = [
    encode(Pair(x=np.ones((2, 3), np.float32), y=np.ones(2, bool))),
    encode(Tensors(named=Arrays({"a": np.arange(5), "b": np.zeros((2, 0))}), raw=b"xyz")),
    encode(Table(counts={"a": 1}, flag="x")),
]


@given(st.sampled_from(_VALID), st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=4))
def test_a_damaged_body_is_a_message_or_a_protocol_error(valid: bytes, damage: list[tuple[int, int]]) -> None:
    data = bytearray(valid)
    for place, value in damage:
        data[place % len(data)] = value
    refused_or_message(bytes(data))


@given(st.sampled_from(_VALID), st.integers(0, 500), st.binary(max_size=20))
def test_a_shortened_or_lengthened_body_is_refused(valid: bytes, cut: int, more: bytes) -> None:
    for data in (valid[: cut % len(valid)], valid + (more or b"\0")):
        for kind in KINDS:
            with pytest.raises(ProtocolError):
                decode(kind, data)


def refused_or_message(data: bytes) -> None:
    for kind in KINDS:
        try:
            message = decode(kind, data, sender="shop", scope="fit/3")
        except ProtocolError as error:
            said = str(error)
        else:
            said = ""
            assert type(message) is kind
            assert decode(kind, encode(message)) == message
        assert not said or said.startswith(f"{kind.kind} from shop in 'fit/3': ")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes are no message"),
        (b"\0\0\0", "3 bytes are no message"),
        (struct.pack("<I", 100) + b"{}", "header of 100 bytes in a body of 6"),
        (struct.pack("<I", 2**32 - 1) + b"{}", "header of 4294967295 bytes"),
        (body(b"\xff\xfe\x00"), "not JSON"),
        (body([1]), "not a mapping"),
        (body({"value": {"$": ["|O", [1]]}}, bytes(16)), "unknown dtype"),
        (body({"value": {"$": ["<f4", [1] * 9]}}, bytes(16)), "too many dimensions"),
        (body({"value": {"$": ["<f4", [-1]]}}), "no whole number in range"),
        (body({"value": {"$": ["<f4", [True]]}}, bytes(16)), "no whole number in range"),
        (body({"value": {"$": ["<f4", [1.0]]}}, bytes(16)), "no whole number in range"),
        (body({"value": {"$": ["<f8", [2**40] * 3]}}), "larger than any memory"),
        (body({"value": {"$": ["<f8", [2**32, 2**32]]}}), "larger than any memory"),
        (body({"value": {"$": ["<f8", [0, 2**40, 2**40]]}}), "larger than any memory"),
        (body({"value": {"$bytes": 2**70}}), "no whole number in range"),
        (body({"value": {"$named": [["a", "<f4", [0]], ["a", "<f4", [0]]]}}), "an array's name comes twice"),
        (body({"value": {"$named": [[1, "<f4", [0]]]}}), r"not \[name, dtype, shape\]"),
        (body({"value": {"$": ["|b1", [2]]}}, b"\1\2" + bytes(14)), "neither 0 nor 1"),
        (body(b'{"value":1,"value":2}'), "a name comes twice"),
        (body(b'{"value":{"a":1,"a":2}}'), "a name comes twice"),
        (body(b'{"value":' + b"9" * 5000 + b"}"), "not JSON"),
    ],
)
def test_the_reason_is_said(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=r"^tests\.Anything/1 from shop in 'fit/3': .*" + reason):
        decode(Anything, data, sender="shop", scope="fit/3")


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"$": ["<f4", [10**6, 250_000]]}, "y": {"$": ["|b1", [10**6]]}},
        {"named": {"$named": [["a", "<f8", [1 << 37]]]}, "raw": {"$bytes": 0}},
        {"named": {"$named": []}, "raw": {"$bytes": 1 << 40}},
    ],
)
def test_a_claimed_terabyte_is_refused_by_its_header(header: dict[str, Any]) -> None:
    data = body(header)
    tracemalloc.start()
    try:
        for kind in KINDS:
            with pytest.raises(ProtocolError, match="bytes announced, 0 came"):
                decode(kind, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("around", [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_is_a_message_or_a_protocol_error(around: tuple[bytes, bytes]) -> None:
    before, after = around
    for depth in (*range(900, 1000, 3), 5_000, 1_000_000):
        data = body(b'{"value":' + before * depth + b"1" + after * depth + b"}")
        try:
            decode(Anything, data)
        except ProtocolError:
            continue
        assert depth < 1000


@pytest.mark.parametrize(
    "data",
    [
        body({"counts": {CANARY: "x"}}),
        body({"counts": {"a": CANARY}}),
        body({"flag": [CANARY]}),
        body({CANARY: 1}),
        body({"counts": {}, "flag": None, CANARY: {"$bytes": 0}}),
        body(b'{"counts":{"\\ud800canary-71c4":"x"}}'),
        body(b'{"\\ud800canary-71c4":1}'),
    ],
)
def test_an_error_holds_no_value_of_the_sender(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(Table, data)
    assert caught.value.__cause__ is None
    assert CANARY not in str(caught.value)
    assert str(caught.value).encode()  # and can be printed


@pytest.mark.parametrize("value", [{1}, 1j, np.float32(1), b"x", object(), [10**5000], [np.ones(2)]])
def test_what_the_wire_does_not_carry_is_refused_where_it_is_sent(value: Any) -> None:
    with pytest.raises(ConfigError, match="value"):
        encode(Anything(value=[value]))


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([object()]), np.array([1j])])
def test_arrays_that_the_wire_does_not_carry_are_refused_where_they_are_sent(array: Array) -> None:
    with pytest.raises(ConfigError, match=r"Tensors.named\['a'\]: .* do not cross the wire"):
        encode(Tensors(named=Arrays({"a": array}), raw=b""))


def test_a_mapping_cannot_pass_for_an_array() -> None:
    with pytest.raises(ConfigError, match=r"may not begin with '\$'"):
        encode(Anything(value={"$bytes": 3}))


def test_a_header_too_long_to_be_read_is_not_sent() -> None:
    with pytest.raises(ConfigError, match="use arrays"):
        encode(Anything(value="x" * MAX_HEADER))
