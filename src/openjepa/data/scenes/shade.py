"""Light on what the rays met: soft light and shadow, a floor, matte and metal surfaces.

A surface gets diffuse light and a highlight from a point of the light, unless an object stands between, and
ambient light from above. Metal also mirrors a bright sky and the floor.

Shapes: S scenes, P rays a scene, n of them on objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openjepa.data.scenes.cast import Ids, Triple, first_hits
from openjepa.data.scenes.cover import Cover
from openjepa.data.scenes.draw import COLOURS, FINISHES, MAX_OBJECTS, SHAPES, Floats, Scenes

# Linear red, green and blue of each colour.
_ALBEDO = np.asarray(
    [(0.34, 0.34, 0.35), (0.62, 0.06, 0.06), (0.07, 0.14, 0.68), (0.08, 0.42, 0.10),
     (0.32, 0.17, 0.06), (0.36, 0.10, 0.52), (0.08, 0.52, 0.55), (0.75, 0.62, 0.07)], np.float32
)  # fmt: skip
assert len(_ALBEDO) == len(COLOURS)

_AMBIENT, _DIRECT, _BACKDROP = np.float32(0.3), np.float32(0.85), np.float32(0.3)
_OCCLUSION = np.float32(0.55)  # of ambient light, where an object touches the floor
_FADE = np.float32(14.0)  # distance at which the floor is half backdrop
_SELF = np.float32(1 - 2e-3)  # a ray from the light that ends this near its surface was not stopped before


@dataclass(frozen=True)
class _Surface:
    """Points on objects, n of them."""

    point: Triple
    normal: Triple
    towards_eye: Triple
    lit: Floats
    albedo: Floats
    metal: NDArray[np.bool_]
    height: Floats
    floor: Floats


def shade(
    scenes: Scenes,
    directions: Triple,
    distance: Floats,
    ids: Ids,
    *,
    light_offset: tuple[float, float],
    shadows: Sequence[Cover],
    open_sky: Floats,
) -> Floats:
    """Colours of what rays from the eyes met.

    Args:
        scenes: S scenes.
        directions: Three of (S, P).
        distance: (S, P), and ...
        ids: (S, P), as ``first_hits`` gives them.
        light_offset: Which point of the light shines, from its centre, across x and y.
        shadows: Where objects may block it (`cover_shadows`).
        open_sky: (S, P) from `open_sky`.

    Returns:
        (3, S, P) linear red, green and blue.
    """
    x, y, z = directions
    on_object = ids >= 0
    reach = np.where(on_object, distance, scenes.eye[:, 2, None] / -z)  # to the object or the floor
    point = tuple(scenes.eye[:, i, None] + reach * v for i, v in enumerate(directions))
    light = scenes.light + np.asarray([*light_offset, 0], np.float32)
    from_light = tuple(point[i] - light[:, i, None] for i in range(3))
    stopped, _ = first_hits(scenes, light, (from_light[0], from_light[1], from_light[2]), shadows)
    lit = np.where(stopped < _SELF, np.float32(0), np.float32(1))

    towards = _unit((-from_light[0], -from_light[1], -from_light[2]))
    brightness = _AMBIENT * open_sky + _DIRECT * lit * towards[2]
    fade = reach * reach
    fade = fade / (fade + _FADE * _FADE)
    colours = np.stack([
        (1 - fade) * (scenes.floor[:, i, None] * brightness) + fade * _BACKDROP for i in range(3)
    ])  # fmt: skip

    where = np.flatnonzero(on_object)
    rows, slots = where // ids.shape[1], ids.ravel()[where].astype(np.int64)
    here = (point[0].ravel()[where], point[1].ravel()[where], point[2].ravel()[where])
    surface = _Surface(
        point=here,
        normal=_normals(scenes, rows, slots, here),
        towards_eye=_unit((-x.ravel()[where], -y.ravel()[where], -z.ravel()[where])),
        lit=lit.ravel()[where],
        albedo=_ALBEDO[scenes.colour[rows, slots]],
        metal=scenes.finish[rows, slots] == FINISHES.index("metal"),
        height=scenes.extent[rows, slots],
        floor=scenes.floor[rows, 0],
    )
    beam = (towards[0].ravel()[where], towards[1].ravel()[where], towards[2].ravel()[where])
    for channel, colour in enumerate(_colours(surface, beam)):
        colours[channel].ravel()[where] = colour
    return colours


def open_sky(scenes: Scenes, directions: Triple) -> Floats:
    """How much of the sky the floor sees where rays from the eyes meet it, (S, P): less near objects."""
    reach = scenes.eye[:, 2, None] / -directions[2]
    point = [scenes.eye[:, i, None] + reach * directions[i] for i in range(2)]
    seen = np.ones_like(reach)
    for slot in range(MAX_OBJECTS):
        used = (slot < scenes.count).astype(np.float32)[:, None]
        across, along = point[0] - scenes.x[:, slot, None], point[1] - scenes.y[:, slot, None]
        square = scenes.extent[:, slot, None] * scenes.extent[:, slot, None]
        near = square / (across * across + along * along + square)
        seen *= 1 - (_OCCLUSION * used) * (near * near)
    return seen


def _normals(scenes: Scenes, rows: NDArray[np.int64], slots: NDArray[np.int64], point: Triple) -> Triple:
    """Outward unit normals (n,) of points on objects."""
    extent, cosine, sine = scenes.extent[rows, slots], scenes.cosine[rows, slots], scenes.sine[rows, slots]
    x, y = point[0] - scenes.x[rows, slots], point[1] - scenes.y[rows, slots]
    across, along = (cosine * x + sine * y) / extent, (cosine * y - sine * x) / extent
    height = point[2] / extent - 1
    shape = scenes.shape[rows, slots]
    zero = np.zeros_like(height)

    # The face of a cube is that of the largest coordinate; of a cylinder, an end where |z| beats the radius.
    ax, ay, az = np.abs(across), np.abs(along), np.abs(height)
    cube, cylinder = shape == SHAPES.index("cube"), shape == SHAPES.index("cylinder")
    face = np.where(
        cube, np.maximum(ax, ay) < az, cylinder & (across * across + along * along < height * height)
    )
    side_x = np.where(cube, np.where(ax >= ay, np.sign(across), zero), across)
    side_y = np.where(cube, np.where(ax >= ay, zero, np.sign(along)), along)
    nx, ny = np.where(face, zero, side_x), np.where(face, zero, side_y)
    nz = np.where(face, np.sign(height), np.where(cube | cylinder, zero, height))
    return _unit((cosine * nx - sine * ny, sine * nx + cosine * ny, nz))


def _colours(surface: _Surface, beam: Triple) -> tuple[Floats, Floats, Floats]:
    """Linear colours (n,) of points on objects; ``beam`` points to the light."""
    (nx, ny, nz), (ex, ey, ez), (bx, by, bz) = surface.normal, surface.towards_eye, beam
    facing = np.maximum(nx * bx + ny * by + nz * bz, 0) * surface.lit
    twice = 2 * (nx * ex + ny * ey + nz * ez)
    mx, my, mz = twice * nx - ex, twice * ny - ey, twice * nz - ez  # where a mirror would look
    shine = np.maximum(mx * bx + my * by + mz * bz, 0) * surface.lit
    for _ in range(3):
        shine = shine * shine  # to the 8th power ...
    glint = shine * shine
    glint = glint * glint  # ... and to the 32nd

    grounded = np.float32(0.45) + np.float32(0.55) * surface.point[2] / (2 * surface.height)
    ambient = _AMBIENT * grounded * (np.float32(0.6) + np.float32(0.4) * nz)
    sky = np.float32(0.45) + np.float32(0.75) * mz * mz
    mirrored = np.where(mz > 0, sky, np.float32(0.55) * surface.floor * (1 + mz) + np.float32(0.1))
    matte = ambient + _DIRECT * facing
    metal = np.float32(0.25) * matte + np.float32(0.8) * mirrored
    light = np.where(surface.metal, metal, matte)
    highlight = np.where(surface.metal, np.float32(0.9) * glint, np.float32(0.07) * shine)
    tint = np.where(surface.metal, np.float32(0.12), np.float32(0))  # metal is paler
    red, green, blue = ((surface.albedo[:, i] * (1 - tint) + tint) * light + highlight for i in range(3))
    return red, green, blue


def _unit(vector: Triple) -> Triple:
    x, y, z = vector
    inverse = 1 / np.sqrt(x * x + y * y + z * z)
    return x * inverse, y * inverse, z * inverse
