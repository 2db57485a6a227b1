"""What stands where in a scene: objects, camera and light, each a pure function of (seed, sample, attempt).

Only +, −, ×, ÷ and √ are used here and where rays are cast and shaded, each operation by itself: IEEE 754
fixes their results to the last bit, so that every machine renders the same pixels.

Shapes: S scenes, K slots for objects. The floor is z = 0, lengths are in units of about a large object's width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from openjepa.rng import uniform

Floats: TypeAlias = NDArray[np.floating[Any]]  # float32; NumPy's annotations think that 1 - x is not
Ints: TypeAlias = NDArray[np.int64]

SHAPES = ("sphere", "cube", "cylinder")
FINISHES = ("matte", "metal")
COLOURS = ("grey", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
MIN_OBJECTS, MAX_OBJECTS = 3, 10
RADII = (0.42, 0.54, 0.68)
LARGEST = 0.98
"""Radius of one object of each scene, so that there is a largest."""
EXTENTS = (1.0, 0.74, 0.83)
"""Half a sphere's, cube's and cylinder's height over the radius, so that none looks larger than the others."""
FOCAL = 2.3
"""Distance of the image plane, whose half-width is 1."""
LIGHT_SIZE = 0.85
"""Half the width of the light."""

_ARENA = 2.7  # objects stand within ± this
_GAP = 0.12  # between objects
_CANDIDATES = 16  # places tried for an object


@dataclass(frozen=True)
class Scenes:
    """S scenes. Slots from an image's ``count`` on are empty."""

    count: Ints
    """(S,) objects."""
    shape: Ints
    """(S, K) places in SHAPES."""
    colour: Ints
    """(S, K) places in COLOURS."""
    finish: Ints
    """(S, K) places in FINISHES."""
    extent: Floats
    """(S, K) half heights."""
    x: Floats
    """(S, K)."""
    y: Floats
    """(S, K)."""
    cosine: Floats
    """(S, K) of the turn about the vertical."""
    sine: Floats
    """(S, K)."""
    eye: Floats
    """(S, 3) where the camera is."""
    right: Floats
    """(S, 3) the camera's axes, unit vectors."""
    up: Floats
    """(S, 3)."""
    forward: Floats
    """(S, 3)."""
    light: Floats
    """(S, 3) the centre of the light."""
    floor: Floats
    """(S, 3) albedo of the floor."""
    placed: NDArray[np.bool_]
    """(S,) whether room was found for every object."""

    def __getitem__(self, rows: slice | Ints) -> "Scenes":
        """Some of the scenes."""
        return Scenes(*(getattr(self, field.name)[rows] for field in fields(self)))


def join(parts: Sequence[Scenes]) -> Scenes:
    """All scenes of the parts, in order."""
    return Scenes(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Scenes)))


def draw(seed: int, samples: Ints, attempts: Ints) -> Scenes:
    """Scenes of these samples; another attempt keeps the number of objects and changes everything else.

    Args:
        seed: Of the data set.
        samples: (S,) numbers of the images.
        attempts: (S,) how often each was drawn before.
    """
    count = _choose(uniform(seed, "count", samples, num=1)[:, 0], MAX_OBJECTS - MIN_OBJECTS + 1) + MIN_OBJECTS
    objects = uniform(seed, "objects", samples, attempts, num=5 * MAX_OBJECTS).reshape(-1, 5, MAX_OBJECTS)
    shape = _choose(objects[:, 0], len(SHAPES))
    radius = np.asarray(RADII)[_choose(objects[:, 1], len(RADII))]
    radius[:, 0] = LARGEST
    turn = 2 * objects[:, 4] - 1  # the tangent of half an angle, so that no sine is needed
    x, y, placed = _place(
        uniform(seed, "places", samples, attempts, num=2 * _CANDIDATES * MAX_OBJECTS), radius, count
    )
    view = uniform(seed, "view", samples, attempts, num=12)
    eye, right, up, forward = _camera(view)
    light = np.stack([-5 + 3 * view[:, 6], -5 + 3 * view[:, 7], 7 + 2 * view[:, 8]], axis=1)
    floor = (0.42 + 0.16 * view[:, 9, None]) * (1 + 0.08 * (view[:, [10, 11, 9]] - 0.5))
    lengths = {
        "extent": radius * np.asarray(EXTENTS)[shape], "x": x, "y": y,
        "cosine": (1 - turn * turn) / (1 + turn * turn), "sine": 2 * turn / (1 + turn * turn),
        "eye": eye, "right": right, "up": up, "forward": forward, "light": light, "floor": floor,
    }  # fmt: skip
    return Scenes(
        count=count,
        shape=shape,
        colour=_choose(objects[:, 2], len(COLOURS)),
        finish=_choose(objects[:, 3], len(FINISHES)),
        placed=placed,
        **{name: array.astype(np.float32) for name, array in lengths.items()},
    )


def rays(scenes: Scenes, across: Floats, down: Floats) -> tuple[Floats, Floats, Floats]:
    """Directions of the camera's rays, each of length 1 along the camera's axis.

    Args:
        scenes: S scenes.
        across: (P,) from −1 at the left edge of the image to 1 at the right.
        down: (P,) from −1 at the upper edge to 1 at the lower.

    Returns:
        x, y and z, each (S, P).
    """
    a, b = across / np.float32(FOCAL), down / np.float32(FOCAL)
    x, y, z = (
        scenes.forward[:, i, None] + a * scenes.right[:, i, None] - b * scenes.up[:, i, None]
        for i in range(3)
    )
    return x, y, z


def _choose(numbers: NDArray[np.float64], num: int) -> Ints:
    """Numbers in [0, 1) -> integers below ``num``."""
    return (numbers * num).astype(np.int64)


def _place(
    numbers: NDArray[np.float64], radius: NDArray[np.float64], count: Ints
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """For each object in turn the first of its candidate places that is clear of those before it."""
    tries = (2 * numbers.reshape(len(count), MAX_OBJECTS, _CANDIDATES, 2) - 1) * _ARENA
    places = np.full((len(count), MAX_OBJECTS, 2), 1e3)
    placed = np.ones(len(count), bool)
    for slot in range(MAX_OBJECTS):
        clear = np.ones((len(count), _CANDIDATES), bool)
        for other in range(slot):
            apart = tries[:, slot] - places[:, None, other]
            least = (radius[:, slot] + radius[:, other] + _GAP)[:, None]
            clear &= apart[..., 0] * apart[..., 0] + apart[..., 1] * apart[..., 1] > least * least
        used = slot < count
        places[used, slot] = tries[used, slot, clear.argmax(axis=1)[used]]
        placed &= clear.any(axis=1) | ~used
    return places[..., 0], places[..., 1], placed


def _camera(numbers: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Eye and axes (S, 3) of a camera that looks down at the middle of the arena, with some jitter."""
    jitter = 2 * numbers[:, :6] - 1
    zero = np.zeros(len(numbers))
    target = np.stack([0.25 * jitter[:, 0], 0.25 * jitter[:, 1], 0.25 + zero], axis=1)
    towards = _unit(np.stack([0.35 * jitter[:, 2], -1 + zero, 0.78 + 0.18 * jitter[:, 3]], axis=1))
    eye = target + (9.0 + 1.3 * jitter[:, 4, None]) * towards
    forward = -towards
    right = _unit(np.stack([forward[:, 1], -forward[:, 0], zero], axis=1))
    up = np.stack([
        right[:, 1] * forward[:, 2] - right[:, 2] * forward[:, 1],
        right[:, 2] * forward[:, 0] - right[:, 0] * forward[:, 2],
        right[:, 0] * forward[:, 1] - right[:, 1] * forward[:, 0],
    ], axis=1)  # fmt: skip
    return eye, right, up, forward


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = vectors[:, 0], vectors[:, 1], vectors[:, 2]
    return vectors / np.sqrt(x * x + y * y + z * z)[:, None]
