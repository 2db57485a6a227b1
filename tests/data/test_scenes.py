"""The rendered data set: the same pixels everywhere, and labels that say what is in the picture."""

import os
import subprocess
import sys

import numpy as np
import pytest

from openjepa.data.scenes import render as rendering
from openjepa.data.scenes import source
from openjepa.data.scenes.cast import first_hits
from openjepa.data.scenes.cover import SIDE, Cover, cover_objects, cover_shadows
from openjepa.data.scenes.draw import MAX_OBJECTS, MIN_OBJECTS, SHAPES, draw, rays
from openjepa.data.scenes.render import MIN_VISIBLE, render
from openjepa.data.sources import open_source
from openjepa.errors import DataError

SOME = np.arange(48)


@pytest.fixture(scope="module")
def some():
    return render(source.SEEDS["train"], SOME)


def test_the_pixels_of_every_machine(some):
    # Computed from IEEE's exact operations only: another processor or NumPy must give the same.
    assert source.digest(some) == "7aaf2c012d8904739463468cd6042b72a704e1a9d7a31b2dfbb6ddd019c6f18b"


def test_the_pixels_of_an_older_processor(some):
    """The same without AVX2 and FMA, in a NumPy of its own."""
    code = (
        "import numpy as np; from openjepa.data.scenes.source import digest, SEEDS; "
        "from openjepa.data.scenes.render import render; "
        "from numpy._core._multiarray_umath import __cpu_features__ as found; "
        "print(found.get('X86_V3', found['AVX2']), digest(render(SEEDS['train'], np.arange(48))))"
    )
    # Which names NumPy takes depends on its version; it warns of those it does not know.
    for features in ("X86_V3 X86_V4", "AVX2 FMA3 AVX512F"):
        environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": features}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        used_avx2, found = done.stdout.split()
        assert found == source.digest(some)
        if used_avx2 == "False":
            return
    pytest.skip("this NumPy cannot do without AVX2")


def test_an_image_depends_on_its_number_alone(some):
    again = render(source.SEEDS["train"], np.array([40, 3, 17]))
    for name in ("images", "depth", "count", "shape", "colour", "finish", "distance"):
        np.testing.assert_array_equal(getattr(again, name), getattr(some, name)[[40, 3, 17]])


def test_train_and_test_share_no_image():
    train, test = (render(source.SEEDS[split], SOME).images for split in ("train", "test"))
    assert len(np.unique(np.concatenate([train, test]).reshape(96, -1), axis=0)) == 96


def test_every_object_can_be_seen(some):
    scenes, visible, *_ = rendering._draw_visible(source.SEEDS["train"], SOME)
    used = np.arange(MAX_OBJECTS) < scenes.count[:, None]
    assert visible[used].min() >= MIN_VISIBLE
    assert (visible[~used] == 0).all()
    assert scenes.count.min() >= MIN_OBJECTS
    assert scenes.count.max() <= MAX_OBJECTS


def test_labels_are_those_of_the_object_with_most_pixels(some):
    scenes, visible, *_ = rendering._draw_visible(source.SEEDS["train"], SOME)
    for row in range(len(SOME)):
        largest = max(range(MAX_OBJECTS), key=lambda slot: visible[row, slot])
        assert some.shape[row] == scenes.shape[row, largest]
        assert some.colour[row] == scenes.colour[row, largest]
        assert some.finish[row] == scenes.finish[row, largest]


def test_objects_do_not_touch():
    scenes = draw(5, np.arange(200), np.zeros(200, np.int64))
    for row in np.flatnonzero(scenes.placed):
        used = slice(0, scenes.count[row])
        x, y, size = scenes.x[row, used], scenes.y[row, used], scenes.extent[row, used]
        apart = np.hypot(x[:, None] - x, y[:, None] - y) + np.eye(len(x)) * 100
        assert (apart > size[:, None] + size).all()


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_rays_end_on_the_surface(shape):
    """Against the definition of each shape: a hit lies on it, and nothing of it lies before the hit."""
    scenes = draw(9, np.arange(300), np.zeros(300, np.int64))
    chosen = scenes[np.flatnonzero(scenes.shape[:, 0] == shape)]
    chosen.count[:] = 1  # only the first object
    directions = rays(chosen, *rendering._grid((0.2, -0.3)))
    distance, ids = first_hits(chosen, chosen.eye, directions, cover_objects(chosen))
    assert (ids >= 0).any()

    def inside(t, row, ray):
        """How deep a point is in the object, in its own unit: 1 on the surface, less within."""
        x, y, z = (chosen.eye[row, i].astype(float) + t * directions[i][row, ray] for i in range(3))
        x, y, z = x - chosen.x[row, 0], y - chosen.y[row, 0], z - chosen.extent[row, 0]
        c, s = chosen.cosine[row, 0], chosen.sine[row, 0]
        x, y, z = (v / chosen.extent[row, 0] for v in (c * x + s * y, c * y - s * x, z))
        norms = {
            "sphere": np.sqrt(x * x + y * y + z * z),
            "cube": max(abs(x), abs(y), abs(z)),
            "cylinder": max(np.hypot(x, y), abs(z)),
        }
        return norms[SHAPES[shape]]

    for row, ray in np.argwhere(ids >= 0)[::97]:
        assert inside(float(distance[row, ray]), row, ray) == pytest.approx(1, abs=2e-3)
    for row, ray in np.argwhere(np.ones_like(ids))[::997]:
        end = min(float(distance[row, ray]), 30.0)
        before = [inside(t, row, ray) for t in np.linspace(0, end * 0.999, 60)]
        assert min(before) > 0.99


def everything(scenes):
    """Covers with every ray for every object."""
    covers = []
    for shape in range(len(SHAPES)):
        used = (np.arange(MAX_OBJECTS) < scenes.count[:, None]) & (scenes.shape == shape)
        slots, rows = np.nonzero(used.T)
        objects = np.repeat(np.arange(len(rows)), SIDE * SIDE)
        rays_of = rows[objects] * SIDE * SIDE + np.tile(np.arange(SIDE * SIDE), len(rows))
        ends = np.cumsum(np.bincount(slots, minlength=MAX_OBJECTS)) * SIDE * SIDE
        covers.append(Cover(rows, slots, objects, rays_of, (0, *ends.tolist())))
    return covers


def test_boxes_leave_out_no_object_and_no_shadow():
    scenes = rendering._draw_visible(3, np.arange(24))[0]
    directions = rays(scenes, *rendering._grid((0, 0)))
    hits = first_hits(scenes, scenes.eye, directions, cover_objects(scenes))
    whole = first_hits(scenes, scenes.eye, directions, everything(scenes))
    for found, expected in zip(hits, whole, strict=True):
        np.testing.assert_array_equal(found, expected)

    reach = np.where(hits[1] >= 0, hits[0], scenes.eye[:, 2, None] / -directions[2])
    for offset in rendering._LIGHT_OFFSETS:
        light = scenes.light + np.asarray([*offset, 0], np.float32)
        to_point = tuple(scenes.eye[:, i, None] + reach * directions[i] - light[:, i, None] for i in range(3))
        boxed, _ = first_hits(scenes, light, to_point, cover_shadows(scenes))
        free, _ = first_hits(scenes, light, to_point, everything(scenes))
        np.testing.assert_array_equal(boxed < 0.998, free < 0.998)
        assert (free < 0.998).any()


def test_depth_is_that_of_the_rays(some):
    assert some.depth.shape == (len(SOME), SIDE, SIDE)
    assert np.isfinite(some.depth).all()
    assert (some.depth.min(axis=(1, 2)) <= some.distance).all()  # an object's surface is before its centre


def test_segments_show_the_objects(some):
    scenes, visible, *_ = rendering._draw_visible(source.SEEDS["train"], SOME)
    assert some.segments.shape == some.depth.shape
    for row in range(len(SOME)):
        pixels = np.bincount(some.segments[row].ravel(), minlength=1 + len(SHAPES))
        # As many pixels as the objects of each shape show, and the floor all others.
        expected = np.bincount(scenes.shape[row], weights=visible[row], minlength=len(SHAPES))
        np.testing.assert_array_equal(pixels[1:], expected)
        assert pixels[0] == SIDE * SIDE - visible[row].sum()


def test_labels_through_the_source(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path))
    monkeypatch.setattr(source, "SIZES", {"train": 48, "test": 16})
    opened = {name: open_source("scenes:train", target=name) for name in source.TARGETS}
    rendered = render(source.SEEDS["train"], SOME)
    labels = source.labels_of(rendered)
    for name, one in opened.items():
        np.testing.assert_array_equal(one.labels, labels[name])
        assert len(one) == 48
        assert len(one.classes) == len(source.TARGETS[name])
    assert [opened["count"].classes[i] for i in opened["count"].labels] == [str(n) for n in rendered.count]
    default = open_source("scenes")
    np.testing.assert_array_equal(default.labels, labels["shape"])
    np.testing.assert_array_equal(default.read(7), rendered.images[7])
    np.testing.assert_array_equal(default.depth(7), rendered.depth[7])
    np.testing.assert_array_equal(default.segments(7), rendered.segments[7])
    assert default.segment_names == ("floor", *SHAPES)
    assert default.fingerprint == source.digest(rendered)
    assert len(open_source("scenes", split="test")) == 16


def test_a_rendering_cut_off_is_done_again(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path))
    monkeypatch.setattr(source, "SIZES", {"train": 8, "test": 8})
    left = tmp_path / f"scenes-{source.VERSION}-test-8.partial"
    left.mkdir()
    (left / "images.npy").write_bytes(b"half")
    assert len(open_source("scenes:test")) == 8
    assert not left.exists()


def test_mistakes(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="shape, colour, finish, count, distance"):
        open_source("scenes", target="size")
    with pytest.raises(DataError, match="no split 'val'"):
        open_source("scenes:val")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="OPENJEPA_CACHE"):
        open_source("scenes")
