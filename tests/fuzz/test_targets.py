"""The fuzzer's targets hold for their seeds and for damaged ones, so that they work when they are needed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import discover

TARGETS = discover()
SEEDS = {name: target.seeds() for name, target in TARGETS.items()}


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_states_what_holds_and_holds_for_its_seeds(name: str) -> None:
    check = TARGETS[name].check
    assert check.__doc__ and check.__doc__.startswith("Any ")
    assert SEEDS[name]
    for seed in SEEDS[name]:
        check(seed)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=50)
@given(data=st.data())
def test_every_target_holds_for_seeds_that_are_damaged(name: str, data: st.DataObject) -> None:
    check = TARGETS[name].check
    seed = SEEDS[name][data.draw(st.integers(0, len(SEEDS[name]) - 1))]
    at, some = data.draw(st.integers(0, len(seed))), data.draw(st.binary(max_size=9))
    kept = data.draw(st.integers(0, 9))
    check(seed[:at] + some + seed[at + kept :])
