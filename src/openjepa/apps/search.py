"""`openjepa search FILE.parquet [IMAGE]`: images by their features, from a file that `openjepa embed` wrote.

openjepa search photos.parquet holiday.jpg --k 9 --out nearest.png
openjepa search photos.parquet --duplicates
openjepa search photos.parquet --outliers --k 20
openjepa search photos.parquet --select 100            # label these first
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from openjepa import neighbours
from openjepa.apps.embed import embed
from openjepa.data.bad_files import BadImage
from openjepa.data.preprocess import Preprocess
from openjepa.data.sources import Source, open_source, same_data
from openjepa.errors import CheckpointError, DataError, UserError
from openjepa.formats.embeddings import read_embeddings, read_metadata
from openjepa.hub import load, weights_hash
from openjepa.overwrite import refuse_sources
from openjepa.viz.grid import grid_picture

THRESHOLD = 0.99
"""Cosine similarity from which images count as near duplicates."""


@dataclass(frozen=True)
class Found:
    """An image that was found.

    Attributes:
        path: As the file of embeddings has it.
        similarity: To the query; of an outlier, to its nearest others; of a duplicate, to the first of its group; None
            of a selection.
        group: Number of its group of duplicates, from 0.
    """

    path: str
    similarity: float | None = None
    group: int | None = None


def search(
    file: str | Path,
    image: str | Path | Image.Image | None = None,
    *,
    k: int = 9,
    checkpoint: str | Path | None = None,
    duplicates: bool = False,
    outliers: bool = False,
    select: int | None = None,
    threshold: float = THRESHOLD,
    num_heads: int | None = None,
    out: str | Path | None = None,
) -> list[Found]:
    """Find images; print a table, and draw them.

    Args:
        file: What `openjepa embed` wrote.
        image: A query: the most similar images are found.
        k: How many, of a query or of outliers.
        checkpoint: The encoder for the query; by default the one that the file names.
        duplicates: Find groups of near duplicates instead.
        outliers: Find the images that are least like their nearest others instead.
        select: Find so many that stand for all instead.
        threshold: Cosine similarity of duplicates.
        num_heads: Attention heads, where the checkpoint does not say.
        out: Picture of what was found (PNG or JPEG), read where the data were.

    Returns:
        What was found, in order.

    Raises:
        UserError: A mistake in options.
        CheckpointError: The checkpoint's weights are others than those that made the file.
        DataError: Images for the picture can't be read.
    """
    asked = [image is not None, duplicates, outliers, select is not None]
    if sum(asked) != 1:
        raise UserError("what is looked for? Give one of IMAGE, --duplicates, --outliers and --select N")
    if k < 1 or (select is not None and select < 1) or not -1 <= threshold <= 1:
        raise UserError(
            f"--k {k}, --select {select}, --threshold {threshold}: at least 1, at least 1, within [-1, 1]"
        )
    if out is not None:
        refuse_sources(Path(out), {"FILE": file, "IMAGE": image})
    bank = Bank(Path(file))
    if image is not None:
        query = bank.embed(image, checkpoint=checkpoint, num_heads=num_heads)
        scores, places = neighbours.nearest(bank.unit, query, min(k, len(bank.unit)))
        found = [
            Found(bank.paths[place], float(score)) for place, score in zip(places[0], scores[0], strict=True)
        ]
    elif duplicates:
        found = list(bank.duplicates(threshold))
    elif outliers:
        scores, places = neighbours.outliers(bank.unit, k=min(k, len(bank.unit)))
        found = [Found(bank.paths[place], float(score)) for place, score in zip(places, scores, strict=True)]
    else:
        found = [
            Found(bank.paths[place])
            for place in neighbours.select(bank.unit, min(select or 1, len(bank.unit)))
        ]
    Console().print(_table(found))
    if out is not None:
        _draw(bank, found, image, Path(out))
    return found


class Bank:
    """The embeddings of a file, and where their images are.

    Args:
        file: What `openjepa embed` wrote.

    Raises:
        UserError: It is no such file, or has no image.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.metadata = file, read_metadata(file)
        self.paths, embeddings = read_embeddings(file)
        if not self.paths:
            raise UserError(f"{file}: no images in it")
        self.unit = neighbours.unit(embeddings)

    def embed(
        self, image: str | Path | Image.Image, *, checkpoint: str | Path | None, num_heads: int | None
    ) -> NDArray[np.float32]:
        """A query's embedding (1, D) of unit length."""
        name, which = str(checkpoint or self.metadata["checkpoint"]), self.metadata["encoder"]
        model = load(name, num_heads=num_heads)
        network = model.target_encoder if which == "target" else model.context_encoder
        if weights_hash(network) != self.metadata["weights_sha256"]:
            raise CheckpointError(
                f"{self.file}: made with other weights than those of the {which} encoder of {name}: give the "
                "checkpoint that made it with --checkpoint, or embed anew"
            )
        pooling = self.metadata["embedding"]["pooling"]
        pool = "mean" if pooling == "mean over patches" else pooling  # as files of earlier versions call it
        return neighbours.unit(embed(model, [image], encoder=which, pool=pool).numpy())

    def duplicates(self, threshold: float) -> Iterator[Found]:
        """Near duplicates, group by group."""
        for number, group in enumerate(neighbours.duplicates(self.unit, threshold=threshold)):
            for place in group:
                likeness = float(self.unit[place] @ self.unit[group[0]])
                yield Found(self.paths[place], likeness, number)

    def images(self, paths: Sequence[str]) -> list[Image.Image]:
        """The images of these paths, from the data that were embedded."""
        data = self.metadata["data"]
        source = open_source(data["name"])
        if not same_data(source, data["fingerprint"]):
            raise UserError(
                f"--out: {data['name']} holds other images now than when {self.file} was made: embed anew for a picture"
            )
        preprocess = Preprocess.of_facts(self.metadata["preprocess"])
        places = _places(source, paths)
        try:
            return [preprocess.shown(source.read(places[path])) for path in paths]
        except BadImage as error:
            raise DataError(f"--out: an image of {data['name']} can't be read: {error}") from None


def _places(source: Source, paths: Sequence[str]) -> dict[str, int]:
    wanted = set(paths)
    return {path: place for place in range(len(source)) if (path := source.path(place)) in wanted}


def _table(found: Sequence[Found]) -> Table:
    table = Table()
    grouped = any(one.group is not None for one in found)
    for name in ("group",) * grouped + ("", "similarity", "path"):
        table.add_column(name, justify="left" if name == "path" else "right", overflow="fold")
    for place, one in enumerate(found, start=1):
        likeness = "–" if one.similarity is None else f"{one.similarity:.4f}"
        cells: list[str | Text] = [str(place), likeness, Text(one.path)]
        table.add_row(*([str(one.group)] if grouped else []), *cells)
    return table


def _label(one: Found) -> str:
    group = "" if one.group is None else f"group {one.group}  "
    return group + ("" if one.similarity is None else f"{one.similarity:.3f}")


def _draw(bank: Bank, found: Sequence[Found], image: str | Path | Image.Image | None, out: Path) -> None:
    """The query first, where there is one, then what was found."""
    pictures = bank.images([one.path for one in found])
    labels = [_label(one) for one in found]
    if image is not None:
        preprocess = Preprocess.of_facts(bank.metadata["preprocess"])
        pictures.insert(0, preprocess.shown(image))
        labels.insert(0, "query")
    out.parent.mkdir(parents=True, exist_ok=True)
    grid_picture(pictures, labels).save(out)
