"""Real tables, too large to be kept here: in a folder `shared/data` at or above this repository, or nowhere.

A test that wants one is marked `tables`. Such tests are run by `make test-tables` alone, so that what
`make test` says does not depend on what lies beside the clone.
"""

from __future__ import annotations

from pathlib import Path

import pytest

CREDIT = "default_credit/UCI_Credit_Card.csv"


def file(name: str) -> Path:
    """The file of that name in such a folder; without one, the test is skipped."""
    places = [above / "shared" / "data" / name for above in Path(__file__).resolve().parents]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        pytest.skip(f"the table {name} is in no folder shared/data at or above this repository")
    return found
