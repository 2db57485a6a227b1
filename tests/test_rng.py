"""Random numbers without state: pure, uniform, independent; permutations that are permutations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openjepa.rng import permute, uniform


def test_a_number_depends_on_what_it_is_for_and_nothing_else() -> None:
    alone = uniform(0, "crop", 3, [7], num=4)
    among = uniform(0, "crop", 3, np.arange(10), num=4)
    np.testing.assert_array_equal(alone[0], among[7])
    others = [
        uniform(1, "crop", 3, 7, num=4),
        uniform(0, "flip", 3, 7, num=4),
        uniform(0, "crop", 4, 7, num=4),
    ]
    assert all((other != alone).all() for other in others)


def test_numbers_are_uniform_and_uncorrelated() -> None:
    numbers = uniform(0, "crop", np.arange(20_000), num=8)
    assert ((numbers >= 0) & (numbers < 1)).all()
    counts = np.histogram(numbers, bins=64, range=(0, 1))[0] / numbers.size * 64
    assert np.abs(counts - 1).max() < 0.1
    correlation = np.corrcoef(numbers.T) - np.eye(8)
    neighbours = np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]
    assert np.abs(correlation).max() < 0.03
    assert abs(neighbours) < 0.03


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    order = permute(np.arange(size), size=size, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [permute(np.arange(1000), size=1000, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (orders[one] == orders[other]).mean() < 0.02
    displacement = np.abs(orders[0] - np.arange(1000)).mean()
    assert displacement == pytest.approx(1000 / 3, rel=0.1)


def test_a_thousand_million_samples_need_no_memory() -> None:
    order = permute([0, 1, 999_999_999], size=10**9, seed=0, epoch=[0, 1, 2])
    assert len(set(order.tolist())) == 3
    with pytest.raises(ValueError, match=r"\[0, 10\)"):
        permute([10], size=10, seed=0, epoch=0)
