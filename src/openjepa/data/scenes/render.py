"""Images, depth maps and labels of scenes: drawn until every object can be seen, then rendered.

rendered = render(seed=1, samples=np.arange(64))     # images (64, 64, 64, 3) uint8
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openjepa.data.scenes.cast import first_hits
from openjepa.data.scenes.cover import SIDE, cover_objects, cover_shadows
from openjepa.data.scenes.draw import MAX_OBJECTS, Floats, Ints, Scenes, draw, join, rays
from openjepa.data.scenes.shade import open_sky, shade

MIN_VISIBLE = 20
"""Pixels of which each object shows the centre, at least."""

_ATTEMPTS = 1000  # crowded scenes pass one time in three: this many are never needed
# Four rays a pixel, each lit from its own point of the light, give smooth edges and soft shadows.
_PIXEL_OFFSETS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
_LIGHT_OFFSETS = ((-0.8, 0.3), (0.3, 0.8), (-0.3, -0.8), (0.8, -0.3))


@dataclass(frozen=True)
class Rendered:
    """S images of 64 × 64 pixels with what is in them."""

    images: NDArray[np.uint8]
    """(S, 64, 64, 3)."""
    depth: Floats
    """(S, 64, 64) along the camera's axis to the centre of each pixel, floor included."""
    segments: NDArray[np.uint8]
    """(S, 64, 64) what the centre of each pixel shows: 0 the floor, else 1 + the object's shape."""
    count: Ints
    """(S,) number of objects, 3 to 10."""
    shape: Ints
    """(S,) of the largest object: the one with the most visible pixels."""
    colour: Ints
    """(S,) of the largest object."""
    finish: Ints
    """(S,) of the largest object."""
    distance: Floats
    """(S,) along the camera's axis to the centre of the nearest object."""


def render(seed: int, samples: Ints) -> Rendered:
    """The images of these samples, each a pure function of (seed, sample).

    Args:
        seed: Of the data set.
        samples: (S,) numbers.
    """
    scenes, visible, ids, depth = _draw_visible(seed, np.asarray(samples, np.int64))
    colours = np.zeros((3, len(samples), SIDE * SIDE), np.float32)
    objects, shadows = cover_objects(scenes), cover_shadows(scenes)
    sky = open_sky(scenes, rays(scenes, *_grid((0, 0))))
    for pixel_offset, light_offset in zip(_PIXEL_OFFSETS, _LIGHT_OFFSETS, strict=True):
        directions = rays(scenes, *_grid(pixel_offset))
        hits = first_hits(scenes, scenes.eye, directions, objects)
        colours += shade(scenes, directions, *hits, light_offset=light_offset, shadows=shadows, open_sky=sky)
    display = np.sqrt(np.minimum(colours * np.float32(0.25), 1))  # a gamma of 2
    pixels = (display * np.float32(255) + np.float32(0.5)).astype(np.uint8)

    largest = visible.argmax(axis=1)
    rows = np.arange(len(samples))
    segments = np.where(ids >= 0, 1 + np.take_along_axis(scenes.shape, ids.clip(0), axis=1), 0)
    return Rendered(
        images=np.ascontiguousarray(pixels.transpose(1, 2, 0)).reshape(-1, SIDE, SIDE, 3),
        depth=depth.reshape(-1, SIDE, SIDE),
        segments=segments.astype(np.uint8).reshape(-1, SIDE, SIDE),
        count=scenes.count,
        shape=scenes.shape[rows, largest],
        colour=scenes.colour[rows, largest],
        finish=scenes.finish[rows, largest],
        distance=_nearest(scenes),
    )


def _draw_visible(seed: int, samples: Ints) -> tuple[Scenes, Ints, Ints, Floats]:
    """Scenes of which every object shows MIN_VISIBLE pixels, visible pixels (S, K), what each pixel shows, and depth.

    (S, P) each: the slot of an object or −1, and the distance along the camera's axis.
    """
    waiting, done = np.arange(len(samples)), []
    for attempt in range(_ATTEMPTS):
        scenes = draw(seed, samples[waiting], np.full(len(waiting), attempt))
        directions = rays(scenes, *_grid((0, 0)))
        distance, ids = first_hits(scenes, scenes.eye, directions, cover_objects(scenes))
        visible = np.stack([(ids == slot).sum(axis=1) for slot in range(MAX_OBJECTS)], axis=1)
        used = np.arange(MAX_OBJECTS) < scenes.count[:, None]
        good = scenes.placed & ((visible >= MIN_VISIBLE) | ~used).all(axis=1)
        floor = scenes.eye[:, 2, None] / -directions[2]
        depth = np.where(ids >= 0, distance, floor)
        kept = np.flatnonzero(good)
        done.append((waiting[kept], scenes[kept], visible[kept], ids[kept], depth[kept]))
        waiting = waiting[~good]
        if len(waiting) == 0:
            break
    assert len(waiting) == 0, f"scenes {samples[waiting]} cannot be drawn"
    order = np.argsort(np.concatenate([places for places, *_ in done]))
    return (
        join([scenes for _, scenes, *_ in done])[order],
        np.concatenate([visible for *_, visible, _, _ in done])[order],
        np.concatenate([ids for *_, ids, _ in done])[order],
        np.concatenate([depth for *_, depth in done])[order],
    )


def _grid(offset: tuple[float, float]) -> tuple[Floats, Floats]:
    """Where the rays of all pixels pass the image plane, −1 to 1 across and down, (P,) each; offset in pixels."""
    places = np.arange(SIDE, dtype=np.float32) + np.float32(0.5)
    across = (places + np.float32(offset[0])) * np.float32(2 / SIDE) - 1
    down = (places + np.float32(offset[1])) * np.float32(2 / SIDE) - 1
    return np.tile(across, SIDE), np.repeat(down, SIDE)


def _nearest(scenes: Scenes) -> Floats:
    """Depth of the nearest object's centre, (S,)."""
    x, y, z = (place - scenes.eye[:, i, None] for i, place in enumerate((scenes.x, scenes.y, scenes.extent)))
    along = x * scenes.forward[:, 0, None] + y * scenes.forward[:, 1, None] + z * scenes.forward[:, 2, None]
    used = np.arange(MAX_OBJECTS) < scenes.count[:, None]
    nearest: Floats = np.where(used, along, np.float32(np.inf)).min(axis=1)
    return nearest
