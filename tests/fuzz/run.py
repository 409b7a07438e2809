"""One target under the fuzzer: `python -m tests.fuzz.run TARGET [libFuzzer's options] [CORPUS or FILE]`."""

from __future__ import annotations

import sys

import atheris

from tests.fuzz import discover

if __name__ == "__main__":
    # What is imported outside of this is not followed, and so guides nobody.
    with atheris.instrument_imports(include=["protocols", "horizontal", "vfl", "split"]):
        known = discover()
    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], known[name].check)
    atheris.Fuzz()
