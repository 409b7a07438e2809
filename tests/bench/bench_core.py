"""The price of a message, and of importing this."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated

import numpy as np

from protocols.arrays import Array
from protocols.wire import codec
from protocols.wire.codec import decode, encode
from protocols.wire.message import Message, Spec
from tests.bench import Ratio, Row, bench, ratio


class Batch(Message, reveals="bench: rows of numbers"):
    h: Annotated[Array, Spec("float32", ("b", "k"))]
    y: Annotated[Array, Spec("int64", ("b",))]


def batch(b: int, k: int) -> Batch:
    return Batch(h=np.random.default_rng(0).normal(size=(b, k)).astype(np.float32), y=np.arange(b))


def repeat(times: int, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        for _ in range(times):
            call()

    return run


@bench
def header_cache() -> list[Row]:
    """A small message there and back, with headers remembered and without."""
    message = batch(32, 64)

    def there_and_back() -> None:
        decode(Batch, encode(message))

    def forgetting() -> None:
        codec._header.cache_clear()
        codec._plan.cache_clear()
        there_and_back()

    measured = ratio(repeat(2000, there_and_back), repeat(2000, forgetting), 7)
    note = "encode and decode of 32 x 64 float32 and 32 labels, over the same with nothing remembered"
    return [Row("header cache", measured, target=0.8, hope=0.5, note=note)]


@bench
def large_message() -> list[Row]:
    """A large message there and back is copied once, into the body."""
    message = batch(16_384, 256)
    source = np.ones(message.h.nbytes + message.y.nbytes, np.uint8)
    measured = ratio(repeat(5, lambda: decode(Batch, encode(message))), repeat(5, source.tobytes), 7)
    note = "encode and decode of 17 MB, over copying them once"
    return [Row("large message", measured, target=3.0, hope=1.5, note=note)]


@bench
def json_values() -> list[Row]:
    """Raw buffers against numbers written out as JSON."""
    message = batch(32, 64)

    def as_json() -> None:
        text = json.dumps({"h": message.h.tolist(), "y": message.y.tolist()}).encode()
        back = json.loads(text)
        Batch(h=np.array(back["h"], dtype=np.float32), y=np.array(back["y"]))

    measured = ratio(repeat(200, lambda: decode(Batch, encode(message))), repeat(200, as_json), 7)
    return [Row("raw buffers", measured, target=0.1, note="encode and decode of 32 x 64, over JSON numbers")]


IMPORT = """
from time import perf_counter
import torch, pandas, sklearn
start = perf_counter()
import vfl
print(perf_counter() - start)
"""


@bench
def import_time() -> list[Row]:
    """Seconds, not a ratio: what `import vfl` takes beyond the libraries that a user has loaded anyway."""
    runs = [subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True) for _ in range(4)]
    extra = [float(run.stdout) for run in runs[1:]]  # the first one may compile
    measured = Ratio(statistics.median(extra), min(extra), max(extra))
    return [Row("import vfl", measured, target=0.5, note="seconds beyond import torch, pandas, sklearn")]
