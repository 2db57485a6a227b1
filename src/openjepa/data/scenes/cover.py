"""Which rays can meet an object at all: those of a box of pixels around it, or around it and its shadow.

Nine tenths of the work of casting is saved. The boxes are generous, so that rounding never changes a picture.

Shapes: S scenes, K slots, m objects of one shape over all scenes, n rays towards them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openjepa.data.scenes.draw import FOCAL, LIGHT_SIZE, MAX_OBJECTS, SHAPES, Floats, Ints, Scenes

SIDE = 64
"""Rows and columns of an image, with a ray for each pixel."""

_WIDTHS = (1.0, 1.4143, 1.0)  # of each shape, over its extent; a cube's diagonal counts


@dataclass(frozen=True)
class Cover:
    """The rays towards all objects of one shape."""

    rows: Ints
    """(m,) the scene of each object, and ..."""
    slots: Ints
    """(m,) ... its slot, ascending."""
    objects: Ints
    """(n,) the object that a ray is for."""
    rays: Ints
    """(n,) the ray among all S · SIDE² of these scenes."""
    starts: tuple[int, ...]
    """(K + 1,) where the rays for the objects of each slot begin; no ray stands twice in a slot."""


def cover_objects(scenes: Scenes) -> list[Cover]:
    """For each shape, the rays from the eye that may meet an object."""
    reach = _reach(scenes)
    centres = (scenes.x, scenes.y)
    return _covers(scenes, [c - reach for c in centres], [c + reach for c in centres])


def cover_shadows(scenes: Scenes) -> list[Cover]:
    """For each shape, the rays to whose end an object may block the light."""
    reach = _reach(scenes)
    # A point q stops light from L to points up to q + (k − 1)(q − L) with k = L_z / (L_z − q_z), on the floor.
    height = scenes.light[:, 2, None]
    most = height / (height - 2 * scenes.extent) - 1
    low, high = [], []
    for axis, centre in enumerate((scenes.x, scenes.y)):
        away = centre - scenes.light[:, axis, None]
        low.append(centre - reach + np.minimum(most * (away - reach - LIGHT_SIZE), 0))
        high.append(centre + reach + np.maximum(most * (away + reach + LIGHT_SIZE), 0))
    return _covers(scenes, low, high)


def _reach(scenes: Scenes) -> Floats:
    return scenes.extent * np.asarray(_WIDTHS, np.float32)[scenes.shape]


def _covers(scenes: Scenes, low: Sequence[Floats], high: Sequence[Floats]) -> list[Cover]:
    top, bottom, left, right = _boxes(scenes, low, high)
    used = np.arange(MAX_OBJECTS) < scenes.count[:, None]
    covers = []
    for shape in range(len(SHAPES)):
        slots, rows = np.nonzero((used & (scenes.shape == shape)).T)  # by slot, so that a slot is one stretch
        widths = (right - left)[rows, slots]
        areas = widths * (bottom - top)[rows, slots]
        objects = np.repeat(np.arange(len(rows)), areas)
        ends = np.cumsum(areas)
        down, across = np.divmod(np.arange(len(objects)) - (ends - areas)[objects], widths[objects])
        pixels = (top[rows, slots][objects] + down) * SIDE + left[rows, slots][objects] + across
        per_slot = np.bincount(slots, weights=areas, minlength=MAX_OBJECTS).astype(np.int64)
        starts = (0, *np.cumsum(per_slot).tolist())
        covers.append(Cover(rows, slots, objects, rows[objects] * SIDE * SIDE + pixels, starts))
    return covers


def _boxes(scenes: Scenes, low: Sequence[Floats], high: Sequence[Floats]) -> tuple[NDArray[np.int64], ...]:
    """Top, bottom, left and right (S, K) in pixels of what stands on the floor between ``low`` and ``high``."""
    across: list[Floats] = []
    down: list[Floats] = []
    for x in (low[0], high[0]):
        for y in (low[1], high[1]):
            for z in (np.float32(0), 2 * scenes.extent):
                point = [place - scenes.eye[:, i, None] for i, place in enumerate((x, y, z))]
                right, up, forward = (
                    axis[:, 0, None] * point[0] + axis[:, 1, None] * point[1] + axis[:, 2, None] * point[2]
                    for axis in (scenes.right, scenes.up, scenes.forward)
                )
                across.append(right / forward)
                down.append(-up / forward)
    edges = (np.min(down, axis=0), np.max(down, axis=0), np.min(across, axis=0), np.max(across, axis=0))
    first, last = (
        [np.clip((edge * FOCAL + 1) * (SIDE / 2) + margin, 0, SIDE).astype(np.int64) for edge in pair]
        for pair, margin in ((edges[::2], -1.5), (edges[1::2], 2.5))
    )
    return first[0], last[0], first[1], last[1]
