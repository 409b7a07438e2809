"""What crosses the lines of an estimator's run."""

from __future__ import annotations

import pytest

from protocols import federation
from protocols.wire.transport import Envelope
from tests.support.columns_apart import Recording


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[Envelope]:
    """Every envelope that is sent from here on, in any run of the test."""
    envelopes: list[Envelope] = []
    monkeypatch.setattr(Recording, "carried", envelopes, raising=False)
    monkeypatch.setattr(federation, "Local", Recording)
    return envelopes
