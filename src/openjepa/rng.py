"""Random numbers without state: pure functions of (seed, stream, counters).

The order of samples, their crops and their mask positions must be the same whatever the
number of workers, and a run resumed at step k must go on as if it had never stopped. So no
generator is ever advanced: a number is *computed* from what it is for, by a counter-based
hash (SplitMix64's finaliser) vectorised over samples.

    uniform(seed, "crop", epoch, samples, num=4)    # (B, 4) numbers in [0, 1)
    permute(positions, size=50_000, seed=0, epoch=3)  # the samples at these positions
"""

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: SplitMix64's increment
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_FEISTEL_ROUNDS = 6


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64 bits in which every input bit moves every output bit."""
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


def _hash(seed: int, stream: str, *counters: ArrayLike) -> NDArray[np.uint64]:
    """Hash of the seed, the name of the use and integer counters (broadcast against each other)."""
    shape = np.broadcast_shapes((1,), *(np.shape(counter) for counter in counters))
    key = np.full(shape, seed & 0xFFFF_FFFF_FFFF_FFFF, dtype=np.uint64)
    with np.errstate(over="ignore"):
        key = _mix(key + _GOLDEN * np.uint64(zlib.crc32(stream.encode())))
        for counter in counters:
            key = _mix(key + _GOLDEN * (np.asarray(counter).astype(np.uint64) + np.uint64(1)))
    return key


def uniform(seed: int, stream: str, *counters: ArrayLike, num: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), a pure function of the arguments.

    Args:
        seed: The run's seed, any integer.
        stream: What the numbers are for; two uses with different names are independent.
        counters: Integers or integer arrays, broadcast to a shape S (at least 1-D).
        num: How many numbers for each element of S.

    Returns:
        Array of shape (*S, num), float64.
    """
    key = _hash(seed, stream, *counters)[..., None]
    with np.errstate(over="ignore"):
        bits = _mix(key + _GOLDEN * np.arange(1, num + 1, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(positions: ArrayLike, *, size: int, seed: int, epoch: ArrayLike) -> NDArray[np.int64]:
    """Where a shuffle of ``range(size)`` puts these positions, without storing the shuffle.

    A Feistel network keyed by (seed, epoch) permutes the smallest even-bit domain holding
    ``size``; indices that fall outside are walked along their cycle until they fall inside
    (fewer than four steps on average, since the domain is under four times too large).

    Args:
        positions: Positions within the epoch, integers in [0, size).
        size: Number of samples.
        seed: The run's seed.
        epoch: The epoch of each position, broadcast against ``positions``.

    Returns:
        int64 array of sample indices, at least 1-D, a bijection of range(size) for each epoch.

    Raises:
        ValueError: A position outside [0, size).
    """
    place, epochs = np.broadcast_arrays(np.atleast_1d(positions), np.atleast_1d(epoch))
    if place.size and (place.min() < 0 or place.max() >= size):
        raise ValueError(f"positions must lie in [0, {size}), got {place.min()}..{place.max()}")
    half_bits = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half_bits) - np.uint64(1)
    keys = [_hash(seed, "order", epochs, turn) for turn in range(_FEISTEL_ROUNDS)]

    index = place.astype(np.uint64)
    outside = np.ones(index.shape, dtype=bool)
    while outside.any():
        left, right = index[outside] >> half_bits, index[outside] & low
        with np.errstate(over="ignore"):
            for key in keys:
                left, right = right, left ^ (_mix(right + key[outside]) & low)
        index[outside] = (left << half_bits) | right
        outside &= index >= np.uint64(size)
    return index.astype(np.int64)
