"""When bad images end a run: not by luck, and soon where they are many."""

import numpy as np
import pytest

from openjepa.data.bad_files import BadFile, BadFiles, too_many
from openjepa.errors import DataError

NUM_IMAGES, BATCH = 20_000, 64


def stopped_after(fraction: float, seed: int, *, num_images: int | None = NUM_IMAGES) -> int | None:
    """Images read when a pass over images of which this fraction is bad is ended; None where it is not."""
    bad = np.zeros(NUM_IMAGES, bool)
    bad[: int(fraction * NUM_IMAGES)] = True
    bad = np.random.default_rng(seed).permutation(bad)
    tracker = BadFiles(max_fraction=0.01, num_images=num_images)
    for start in range(0, NUM_IMAGES, BATCH):
        places = np.flatnonzero(bad[start : start + BATCH])
        try:
            tracker.add(
                num_good=min(BATCH, NUM_IMAGES - start) - len(places),
                bad=[BadFile(f"{start + place}.png", "empty file") for place in places],
            )
        except DataError:
            return start + BATCH
    return None


@pytest.mark.parametrize("fraction", [0.005, 0.01])
def test_what_is_allowed_does_not_end_a_pass(fraction: float) -> None:
    """At half the limit, where a threshold on the fraction ends a third of all passes, and at the limit itself."""
    stopped = [stopped_after(fraction, seed) is not None for seed in range(300)]
    assert np.mean(stopped) < 0.01


def test_what_is_not_allowed_ends_it_soon() -> None:
    found = [stopped_after(0.03, seed) for seed in range(100)]
    assert None not in found
    after = np.array(found, float)
    assert np.median(after) < 1_000
    assert after.max() < 3_000


def test_a_small_excess_ends_it_too() -> None:
    """By the end of the pass, when more were bad than are allowed of all; later, where their number is unknown."""
    assert all(stopped_after(0.0105, seed) is not None for seed in range(20))
    assert stopped_after(0.0105, 0, num_images=None) is None
    assert too_many(13_000, 1_000_000, allowed=0.01)
    assert not too_many(10_000, 1_000_000, allowed=0.01)


def test_nothing_and_everything_may_be_allowed() -> None:
    assert too_many(1, 1_000_000, allowed=0)
    assert not too_many(0, 1_000_000, allowed=0)
    assert not too_many(1_000, 1_000, allowed=1)
    assert too_many(1_000, 1_000, allowed=0.999) is False  # 0.999 ** 1000 is a third: no proof
    assert too_many(1_000, 1_000, allowed=0.9)
