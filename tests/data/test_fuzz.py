"""Mutated files of ten formats: pixels or a reason, within seconds; no other pixels than another decoder has.

The other decoder is imagecodecs, where it is installed. Where both give a picture of one shape they must agree to two
levels; kinds in which they may not, and why, are in `MAY_DIFFER`.
"""

import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, features

from make_images import encode, npy, picture
from openjepa.data.bad_files import BadImage
from openjepa.data.decode import decode

Pixels = NDArray[Any]
SMALL = picture(20, 28)
NUM_FILES = 220  # of each format


def _read_npy(raw: bytes) -> Pixels:
    return np.load(io.BytesIO(raw), allow_pickle=False)


def _codec(name: str) -> Callable[[bytes], Pixels]:
    def read(raw: bytes) -> Pixels:
        imagecodecs = pytest.importorskip("imagecodecs")
        return np.asarray(getattr(imagecodecs, f"{name}_decode")(raw))

    return read


def _read_tiff(raw: bytes) -> Pixels:
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffFile(io.BytesIO(raw)) as file:
        return np.asarray(file.pages[0].asarray())


def _read_ppm(raw: bytes) -> Pixels:
    kind, width, height, largest = raw.split(None, 4)[:4]
    assert (kind, largest) == (b"P6", b"255")
    pixels = np.frombuffer(raw[-int(width) * int(height) * 3 :], np.uint8)
    return pixels.reshape(int(height), int(width), 3)


FILES: dict[str, tuple[bytes, Callable[[bytes], Pixels]]] = {
    "JPEG": (encode(SMALL, "JPEG", quality=95), _codec("jpeg8")),
    "progressive JPEG": (encode(SMALL, "JPEG", quality=95, progressive=True), _codec("jpeg8")),
    "PNG": (encode(SMALL), _codec("png")),
    "16-bit PNG": (encode(SMALL[..., 0].astype(np.uint16) * 257), _codec("png")),
    "WEBP": (encode(SMALL, "WEBP", lossless=True), _codec("webp")),
    "TIFF": (encode(SMALL, "TIFF"), _read_tiff),
    "deflated TIFF": (encode(SMALL, "TIFF", compression="tiff_adobe_deflate"), _read_tiff),
    "BMP": (encode(SMALL, "BMP"), _codec("bmp")),
    "GIF": (encode(Image.fromarray(SMALL).quantize(32), "GIF"), _codec("gif")),
    "PPM": (encode(SMALL, "PPM"), _read_ppm),
    "JPEG 2000": (encode(SMALL, "JPEG2000"), _codec("jpeg2k")),
    "NPY": (npy(SMALL), _read_npy),
} | ({"AVIF": (encode(SMALL, "AVIF", quality=95), _codec("avif"))} if features.check("avif") else {})
MAY_DIFFER = {
    "GIF": "a palette or a background that is damaged: decoders fill what is missing in their own way",
    "TIFF": "a damaged tag may say that colours are others: ours are converted, the reference's are as stored",
    "deflated TIFF": "as TIFF",
    "PPM": "the reference reads plain headers only",
}


@st.composite
def mutations(draw: st.DrawFn, raw: bytes) -> bytes:
    """A file with some bytes changed, cut out, doubled, or the end cut off."""
    data = bytearray(raw)
    near = draw(st.sampled_from([64, len(data)]))  # headers are where it matters
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, min(near, len(data)) - 1)))
        kind = draw(st.sampled_from(["change", "flip", "cut", "double", "end"]))
        if kind == "change":
            data[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "flip":
            data[place : place + 1] = bytes([data[place] ^ (1 << draw(st.integers(0, 7)))]) if data else b""
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 8))]
        elif kind == "double":
            data[place:place] = data[place : place + draw(st.integers(1, 8))]
        else:
            del data[max(1, len(data) - draw(st.integers(1, 200))) :]
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_mutated_files(kind: str) -> None:
    whole, reference = FILES[kind]
    decoded = 0

    @settings(max_examples=NUM_FILES, derandomize=True, deadline=None, database=None)
    @given(mutations(whole))
    def check(raw: bytes) -> None:
        nonlocal decoded
        start = time.monotonic()
        try:
            ours = decode(raw)
        except BadImage:
            return
        finally:
            assert time.monotonic() - start < 20
        assert ours.dtype == np.uint8
        assert ours.ndim == 3
        assert ours.shape[2] == 3
        decoded += 1
        if kind not in MAY_DIFFER:
            _compare(ours, raw, reference)

    check()
    assert decoded  # some are still pictures, or nothing was compared
    np.testing.assert_allclose(decode(whole).astype(float), _as_rgb(reference(whole)), atol=2)


def _compare(ours: NDArray[np.uint8], raw: bytes, reference: Callable[[bytes], Pixels]) -> None:
    try:
        theirs = _as_rgb(reference(raw))
    except Exception:  # noqa: BLE001 (what they refuse, or read as something else, is no reference)
        return
    if theirs.shape == ours.shape:
        assert np.abs(ours.astype(float) - theirs).max() <= 2


def _as_rgb(values: Pixels) -> NDArray[np.float64]:
    """Pixels of a reference as (H, W, 3) levels."""
    values = values[0] if values.ndim == 4 else values
    levels = values / 257.0 if values.dtype == np.uint16 else values.astype(float)
    grey = levels[..., None] if levels.ndim == 2 else levels
    return np.rint(grey if grey.shape[2] == 3 else grey[..., :1].repeat(3, axis=2))
