"""Rays against objects: which object a ray meets first, and how far away.

Every object is turned and scaled to a unit shape (sphere of radius 1, cube and cylinder between −1 and 1), where
a few lines of algebra do. All rays of a scene share their origin: the eye, or a point of the light.

Shapes: S scenes, P rays a scene, n rays towards objects of one shape.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from openjepa.data.scenes.cover import Cover
from openjepa.data.scenes.draw import SHAPES, Floats, Scenes

Triple = tuple[Floats, Floats, Floats]
Ids = NDArray[np.int8]

_MISS = np.float32(np.inf)


def first_hits(
    scenes: Scenes, origin: Floats, directions: Triple, covers: Sequence[Cover]
) -> tuple[Floats, Ids]:
    """The nearest object on each ray.

    Args:
        scenes: S scenes.
        origin: (S, 3) where the rays of a scene begin, outside every object.
        directions: Three of (S, P), of any length.
        covers: For each shape, which rays to try.

    Returns:
        Distance in lengths of the direction (S, P), infinite where nothing is met; object's slot (S, P), −1 there.
    """
    shape = directions[0].shape
    nearest, ids = np.full(shape, _MISS).ravel(), np.full(shape, -1, np.int8).ravel()
    for cover, meet in zip(covers, _MEET, strict=True):
        if len(cover.rows) == 0:
            continue
        distance = meet(*_to_objects(scenes, cover, origin, directions))
        for slot, (start, end) in enumerate(itertools.pairwise(cover.starts)):
            rays, found = cover.rays[start:end], distance[start:end]
            nearer = found < nearest[rays]
            nearest[rays[nearer]] = found[nearer]
            ids[rays[nearer]] = slot
    return nearest.reshape(shape), ids.reshape(shape)


def _to_objects(scenes: Scenes, cover: Cover, origin: Floats, directions: Triple) -> tuple[Triple, Triple]:
    """Origins and directions (n,) of rays as the objects they are for see them."""
    rows, slots = cover.rows, cover.slots
    scale = 1 / scenes.extent[rows, slots]
    cosine, sine = scenes.cosine[rows, slots] * scale, scenes.sine[rows, slots] * scale
    x = origin[rows, 0] - scenes.x[rows, slots]
    y = origin[rows, 1] - scenes.y[rows, slots]
    z = origin[rows, 2] * scale - 1  # objects stand on the floor
    start = tuple(place[cover.objects] for place in (cosine * x + sine * y, cosine * y - sine * x, z))
    across, along, upwards = (direction.ravel()[cover.rays] for direction in directions)
    cosine, sine, scale = cosine[cover.objects], sine[cover.objects], scale[cover.objects]
    turned = (cosine * across + sine * along, cosine * along - sine * across, upwards * scale)
    return (start[0], start[1], start[2]), turned


def _meet_sphere(origin: Triple, direction: Triple) -> Floats:
    enter, _ = _quadric(origin, direction)
    return enter


def _meet_cylinder(origin: Triple, direction: Triple) -> Floats:
    side, bottom = _quadric(origin[:2], direction[:2]), _slab(origin[2], direction[2])
    return _both(side, bottom)


def _meet_cube(origin: Triple, direction: Triple) -> Floats:
    (a, b), (c, d), (e, f) = (_slab(o, v) for o, v in zip(origin, direction, strict=True))
    return _both((np.maximum(a, c), np.minimum(b, d)), (e, f))


_MEET: tuple[Callable[[Triple, Triple], Floats], ...] = (_meet_sphere, _meet_cube, _meet_cylinder)
assert len(_MEET) == len(SHAPES)


def _quadric(origin: tuple[Floats, ...], direction: tuple[Floats, ...]) -> tuple[Floats, Floats]:
    """Where rays enter and leave |p| ≤ 1 in as many dimensions as given; (∞, ∞) where they miss."""
    a = direction[0] * direction[0]
    b = origin[0] * direction[0]
    c = origin[0] * origin[0] - 1
    for o, v in zip(origin[1:], direction[1:], strict=True):
        a += v * v
        b += o * v
        c = c + o * o
    square = b * b
    square -= a * c
    root = np.sqrt(np.maximum(square, 0))
    a = 1 / a
    missed = square <= 0
    enter, leave = (-b - root) * a, (root - b) * a
    enter[missed] = _MISS
    leave[missed] = _MISS
    return enter, leave


def _slab(origin: Floats, direction: Floats) -> tuple[Floats, Floats]:
    """Where rays enter and leave −1 ≤ p ≤ 1."""
    with np.errstate(divide="ignore"):  # along the slab: infinite, and right
        inverse = 1 / direction
    a, b = (-1 - origin) * inverse, (1 - origin) * inverse
    return np.minimum(a, b), np.maximum(a, b)


def _both(one: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> Floats:
    """Where rays enter what both intervals share, ∞ where they share nothing."""
    enter, leave = np.maximum(one[0], other[0]), np.minimum(one[1], other[1])
    enter[enter >= leave] = _MISS
    return enter
