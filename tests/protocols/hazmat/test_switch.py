"""When kernels serve, where their compiled code lies, and that small sets know nothing of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from numba import config

from protocols.errors import ConfigError
from protocols.hazmat import compiled, curve25519, prepared, switch
from protocols.psi import curve

A_THOUSAND = """
import sys, time
from protocols.psi import curve
values, started = [b"%d" % i for i in range(1000)], time.process_time()
points = curve.multiply(bytes(range(32)), curve.encode_points(bytes(32), values))
curve.check_points(points)
curve.multiply(bytes(range(32)), points)
assert time.process_time() - started < 1
assert curve.prepare(1000).by == "library"
assert "numba" not in sys.modules and "llvmlite" not in sys.modules
"""


def test_a_thousand_ids_compile_nothing_and_take_less_than_a_second() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "VFL_KERNELS"}
    subprocess.run([sys.executable, "-c", A_THOUSAND], check=True, env=environment)


@pytest.mark.parametrize(
    ("setting", "fast_cpu", "before", "loaded", "served"),
    [
        ("off", True, True, True, set()),
        ("", True, True, False, {switch.LARGE, switch.HUGE}),
        ("auto", True, True, False, {switch.LARGE, switch.HUGE}),
        ("auto", True, True, True, {1, switch.LARGE - 1, switch.LARGE, switch.HUGE}),
        ("auto", True, False, False, {switch.HUGE}),
        ("auto", False, True, False, set()),
        ("on", False, False, False, {1, switch.LARGE - 1, switch.LARGE, switch.HUGE}),
    ],
)
def test_who_serves(
    setting: str,
    fast_cpu: bool,
    before: bool,
    loaded: bool,
    served: set[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VFL_KERNELS", setting)
    monkeypatch.setattr(curve25519, "field_of_this_cpu", lambda: "fma" if fast_cpu else None)
    monkeypatch.setattr(curve25519, "prepared_before", lambda: before)
    monkeypatch.setattr(curve25519, "serves", lambda: loaded)
    monkeypatch.setattr(curve25519, "prepare", lambda: prepared.Prepared("fma", 0.0, "there already"))
    sizes = {0, 1, switch.LARGE - 1, switch.LARGE, switch.HUGE}
    assert {size for size in sizes if switch.prepare(size)[1]} == served


def test_another_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFL_KERNELS", "fast")
    with pytest.raises(ConfigError, match=r'VFL_KERNELS should be "auto", "on" or "off", got \'fast\''):
        curve.multiply(bytes(32), curve.encode_points(bytes(32), [b"1"]))


def test_without_numba_the_library_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFL_KERNELS", "on")
    monkeypatch.setitem(sys.modules, "protocols.hazmat.curve25519", None)
    monkeypatch.delattr("protocols.hazmat.curve25519")
    with pytest.warns(RuntimeWarning, match="numba cannot be imported, so PSI is slower"):
        assert curve.prepare(5).by == "library"


def double(x: int) -> int:
    return 2 * x


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    compiled._directory.cache_clear()
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path
    compiled._directory.cache_clear()


def test_code_is_kept_in_the_users_cache_directory(elsewhere: Path) -> None:
    assert compiled.kernel(double)(21) == 42 and config.CACHE_DIR == ""
    (place,) = (elsewhere / "cache" / "vfl-toolkit").iterdir()
    assert place == compiled._directory() and place.stat().st_mode & 0o777 == 0o700
    assert list(place.rglob("*.nbi")) and list(place.rglob("*.nbc"))
    assert not compiled.marked("fma")
    compiled.mark("fma")
    assert compiled.marked("fma") and not compiled.marked("ifma")


def test_a_kernel_that_is_not_to_be_kept_works(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_kernels", [])
    doubled = compiled.kernel(double)
    compiled.keep_nothing()
    assert doubled(3) == 6 and not list(elsewhere.rglob("*.nbc"))


def test_a_users_own_directory_is_obeyed(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(elsewhere / "own"))
    assert compiled.kernel(double)(1) == 2
    assert list((elsewhere / "own").rglob("*.nbc")) and not (elsewhere / "cache").exists()
    assert str(elsewhere / "own") == config.CACHE_DIR


def test_other_sources_or_another_cpu_have_other_places(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = compiled._directory()
    compiled.mark("fma")
    monkeypatch.setattr(config, "CPU_FEATURES", "+avx2")
    assert not compiled.marked("fma")
    monkeypatch.setattr(compiled, "__file__", str(elsewhere / "compiled.py"))
    compiled._directory.cache_clear()
    assert compiled._directory().parent == here.parent and compiled._directory() != here


def test_features_that_a_user_takes_away_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CPU_FEATURES", "")
    assert curve25519.field_of_this_cpu() is None
    monkeypatch.setattr(config, "CPU_FEATURES", "+avx2,+fma,-avx512ifma")
    assert curve25519.field_of_this_cpu() == "fma"
    monkeypatch.setattr(config, "CPU_FEATURES", "+avx2,+fma,+avx512f,+avx512ifma")
    assert curve25519.field_of_this_cpu() == "ifma"


def test_kernels_change_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = pa.array([b"", *(b"%d" % i * (i % 40) for i in range(1, 3000))], pa.large_binary())
    found = []
    for setting in ("off", "on"):
        monkeypatch.setenv("VFL_KERNELS", setting)
        monkeypatch.setattr(curve, "_BATCH", 700)
        coded = [curve.encode_points(bytes(32), v) for v in (values, values[5:2000], values.to_pylist()[:9])]
        found.append([*coded, curve.multiply(bytes(range(32)), coded[0])])
        curve.check_points(coded[0])
    for library, kernel in zip(*found, strict=True):
        assert library.tobytes() == kernel.tobytes() and library.shape == kernel.shape
