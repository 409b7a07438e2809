"""Whether compiled kernels serve, decided without importing numba for those who need none.

The environment variable `VFL_KERNELS`, read at each call, is `auto` (or unset): where the CPU makes them
faster than the library, and for sets that are large enough to pay for loading or compiling them; `on`:
everywhere, for any size; `off`: nowhere.
"""

from __future__ import annotations

import os
import sys
import warnings
from types import ModuleType
from typing import Literal, cast

from protocols.errors import ConfigError
from protocols.hazmat.prepared import Prepared

# Points in a set. Loading compiled kernels takes one to two seconds and compiling them ten times that, while
# they save an id 60 µs of a PSI (docs/decisions/011-kernels.md): so smaller sets use what is loaded already,
# those from LARGE on what is compiled already, and those from HUGE on are worth the compiling.
LARGE = 30_000
HUGE = 200_000
STEP = "kernels made ready (compiled once on a machine)"  # as whoever watches is told


def chosen() -> Literal["auto", "on", "off"]:
    """`VFL_KERNELS`; ConfigError if it says something else."""
    value = os.environ.get("VFL_KERNELS", "") or "auto"
    if value not in ("auto", "on", "off"):
        raise ConfigError(
            f'the environment variable VFL_KERNELS should be "auto", "on" or "off", got {value!r}'
        )
    return cast(Literal["auto", "on", "off"], value)


def prepare(count: int) -> tuple[Prepared, ModuleType | None]:
    """Who serves `count` points, made ready; and `protocols.hazmat.curve25519`, or None for the library."""
    library = Prepared("library", 0.0, "there already"), None
    setting = chosen()
    if setting == "off" or not count:
        return library
    if setting == "auto" and count < LARGE:
        loaded = sys.modules.get("protocols.hazmat.curve25519")  # for a larger set, earlier in this process
        return (loaded.prepare(), loaded) if loaded is not None and loaded.serves() else library
    try:
        from protocols.hazmat import curve25519
    except ImportError as error:  # a numba that does not know this numpy or Python says so when imported
        warnings.warn(f"numba cannot be imported, so PSI is slower: {error}", RuntimeWarning, stacklevel=2)
        return library
    if setting == "auto" and not curve25519.field_of_this_cpu():
        return library
    if setting == "auto" and count < HUGE and not curve25519.prepared_before():
        return library
    prepared = curve25519.prepare()
    return prepared, None if prepared.by == "library" else curve25519
