"""Who serves: kernels for large sets, libraries for small ones, and where kernels are wrong."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from protocols.errors import ConfigError
from protocols.hazmat import compiled, oprf_kernels, oprf_switch
from protocols.hazmat.equal_rows import find


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VFL_KERNELS", raising=False)


def test_large_sets_are_served_by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert oprf_switch.kernels(oprf_switch.LARGE - 1) is None
    assert oprf_switch.kernels(oprf_switch.LARGE) is oprf_kernels
    monkeypatch.setenv("VFL_KERNELS", "on")
    assert oprf_switch.kernels(0) is oprf_kernels
    monkeypatch.setenv("VFL_KERNELS", "off")
    assert oprf_switch.kernels(10**9) is None
    monkeypatch.setenv("VFL_KERNELS", "yes")
    with pytest.raises(ConfigError, match='VFL_KERNELS should be "auto", "on" or "off", got \'yes\''):
        oprf_switch.kernels(1)


def broken(name: str) -> Any:
    """The kernels, one of which gives a wrong last bit."""

    def wrong(*arguments: Any) -> Any:
        result = getattr(oprf_kernels, name)(*arguments)
        array = result if isinstance(result, np.ndarray) else arguments[1]
        array[-1] ^= 1
        return result

    kept = {each: getattr(oprf_kernels, each) for each in ("hash_values", "insert", "find", "transpose")}
    return SimpleNamespace(**{**kept, name: wrong})


@pytest.mark.parametrize("name", ["hash_values", "insert", "find", "transpose"])
def test_a_kernel_that_is_wrong_is_found(name: str) -> None:
    assert oprf_switch.agree(oprf_kernels)
    assert not oprf_switch.agree(broken(name))


def test_wrong_kernels_are_left_out_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oprf_switch, "agree", lambda module: False)
    with pytest.warns(RuntimeWarning, match="left out on this machine, they differ from hashlib and numpy"):
        assert oprf_switch._tried.__wrapped__() is None


def test_a_full_disk_costs_no_kernel_and_a_failing_compiler_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    def full(module: object) -> bool:
        if not told:
            raise OSError(28, "No space left on device")
        return True

    monkeypatch.setattr(oprf_switch, "agree", full)
    monkeypatch.setattr(compiled, "keep_nothing", lambda: told.append(True))
    assert oprf_switch._tried.__wrapped__() is oprf_kernels and told == [True]
    monkeypatch.setattr(oprf_switch, "agree", lambda module: 1 // 0)
    with pytest.warns(RuntimeWarning, match="left out on this machine, ZeroDivisionError: "):
        assert oprf_switch._tried.__wrapped__() is None


def test_a_small_intersection_compiles_nothing() -> None:
    program = """
import sys
import pandas as pd
from protocols.psi.ids import canonical
from protocols.psi.kkrt import meet
from tests.protocols.psi.test_ecdh import talk
bank, shop = canonical(pd.Series(range(1000))), canonical(pd.Series(range(500, 1500)))
results, _, _ = talk(lambda me: meet(me, "shop", bank, "both"), lambda me: meet(me, "bank", shop, "both"))
assert len(results["bank"].rows) == 500
assert "numba" not in sys.modules and "llvmlite" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("kernels", [None, oprf_kernels])
def test_equal_rows_are_found(kernels: Any) -> None:
    rng = np.random.default_rng(0)
    own = rng.integers(0, 256, (3000, 10), np.uint8)
    own[17], own[40, :8], own[41, 4:] = own[5], own[30, :8], own[30, 4:]  # a twin; two that are nearly one
    asked = np.concatenate([own[::-1], rng.integers(0, 256, (100, 10), np.uint8)])
    first = {row.tobytes(): i for i, row in reversed(list(enumerate(own)))}
    assert find(own, asked, kernels).tolist() == [first.get(row.tobytes(), -1) for row in asked]
    assert find(own[:0], asked[:3], kernels).tolist() == [-1, -1, -1]
    assert find(own, asked[:0], kernels).tolist() == []
