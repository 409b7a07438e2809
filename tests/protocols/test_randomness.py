"""torch's generator is borrowed, not kept, and by one thread at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from protocols.randomness import torch_seeded


def draw(seed: int) -> list[float]:
    with torch_seeded(seed):
        return [float(torch.rand(())) for _ in range(200)]


def test_a_seed_gives_its_numbers_whatever_other_threads_draw() -> None:
    alone = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(draw, range(8))) == alone
    assert len({tuple(numbers) for numbers in alone}) == 8


def test_the_generator_is_as_before_also_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), torch_seeded(3):
        _ = torch.rand(1) / (1 // 0)
    with torch_seeded():
        torch.rand(5)
    assert torch.equal(before, torch.get_rng_state())
