"""A grid of images with a line of text under each."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

_TILE = 160  # pixels a side
_GAP, _TEXT = 8, 16


def grid_picture(images: Sequence[Image.Image], labels: Sequence[str], *, columns: int = 5) -> Image.Image:
    """Images fitted into square tiles, row by row.

    Args:
        images: Of any size; small ones are shown with their pixels visible.
        labels: A line for each.
        columns: Tiles a row.
    """
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    width, height = _TILE + _GAP, _TILE + _TEXT + _GAP
    picture = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    draw = ImageDraw.Draw(picture)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        row, column = divmod(place, columns)
        left, top = _GAP + column * width, _GAP + row * height
        small = max(image.size) < _TILE
        scale = _TILE / max(image.size)
        size = tuple(max(1, round(side * scale)) for side in image.size)
        method = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
        tile = image.convert("RGB").resize((size[0], size[1]), method)
        picture.paste(tile, (left + (_TILE - size[0]) // 2, top + (_TILE - size[1]) // 2))
        draw.text((left, top + _TILE + 2), label, fill="black")
    return picture
