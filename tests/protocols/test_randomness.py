"""torch's generator is borrowed, not kept, and by one thread at a time; secret seeds are too many to try."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from protocols.randomness import drawn_seed, key_of, new_seed, philox, torch_seeded


def draw(seed: int) -> list[float]:
    with torch_seeded(seed):
        return [float(torch.rand(())) for _ in range(200)]


def test_a_seed_gives_its_numbers_whatever_other_threads_draw() -> None:
    seeds = [*range(4), *(2**200 + seed for seed in range(4))]
    alone = [draw(seed) for seed in seeds]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(draw, seeds)) == alone
    assert len({tuple(numbers) for numbers in alone}) == 8


def test_the_generator_is_as_before_also_after_an_error() -> None:
    before = torch.get_rng_state()
    for seed in (3, 2**200):
        with pytest.raises(ZeroDivisionError), torch_seeded(seed):
            _ = torch.rand(1) / (1 // 0)
    with torch_seeded():
        torch.rand(5)
    assert torch.equal(before, torch.get_rng_state())


def test_torch_looks_at_32_bits_of_a_short_seed_and_no_long_one_is_like_another() -> None:
    """So who sees a network's outputs could try all weights that short seeds give."""
    assert draw(5) == draw(5 + 2**32)
    long = [2**bit + 5 for bit in range(63, 256)]
    assert len({tuple(draw(seed)[:3]) for seed in long}) == len(long)


def test_each_word_of_torchs_generator_is_drawn_from_a_long_seed() -> None:
    """numpy's Mersenne Twister from the same words goes on with the same numbers."""
    seed = new_seed()
    words = philox(key_of("torch", seed)).integers(2**32, size=624, dtype=np.uint64)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words.astype(np.uint32), "pos": 624}}
    with torch_seeded(seed):
        drawn = torch.randint(0, 2**16, (2000,)).numpy()
    np.testing.assert_array_equal(drawn, twister.random_raw(2000) % 2**16)


def test_seeds_are_long_and_others_each_time() -> None:
    rng = philox(7)
    seeds = [*(new_seed() for _ in range(100)), *(drawn_seed(rng) for _ in range(100))]
    assert len({*seeds}) == 200 and 2**248 < max(seeds) < 2**256 and min(seeds) > 2**128
    assert drawn_seed(philox(7)) == seeds[100]
