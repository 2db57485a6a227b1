"""`openjepa embed CKPT DATA --out FILE.parquet`: one vector an image, by default the mean over the encoder's patches.

    openjepa embed runs/photos photos --out photos.parquet

In Python, with a model in memory too, and without a file:

    features = openjepa.embed(model, ["one.jpg", "two.jpg"])        # (2, D)
    features = openjepa.embed("runs/photos", "photos")              # (N, D)

Shapes: B images of a batch, c channels, N patches, D width.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openjepa.allocator import keep_freed_memory
from openjepa.data.bad_files import BadFile, BadFiles
from openjepa.data.dataset import Batch, ImageDataset
from openjepa.data.decode import Picture
from openjepa.data.loader import evaluate_batches
from openjepa.data.preprocess import Preprocess, normalise
from openjepa.data.sources import open_source
from openjepa.errors import DataError, UserError
from openjepa.evals.features import (
    POOLINGS,
    Encoder,
    pool_patches,
    pooled,
    pooled_size,
    require_finite,
)
from openjepa.formats.embeddings import EmbeddingFile, check_embeddings, only_writer, part_size, unfinished
from openjepa.hub import load, weights_hash
from openjepa.methods.method import Method
from openjepa.models.vit import VisionTransformer
from openjepa.overwrite import Sources, check_file, is_bad_files
from openjepa.progress import ImageProgress
from openjepa.runtime import available_cores, bfloat16_pays, resolve_device

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Images = Tensor | Image.Image | Sequence[str | Path | Picture]


@dataclass(frozen=True, kw_only=True)
class _Options:
    """How to embed; the public arguments of the same names."""

    encoder: str
    pool: str
    patches: bool
    precision: str
    device: str
    batch_size: int | None
    num_workers: int
    max_bad_fraction: float
    overwrite: bool
    progress: bool

    def __post_init__(self) -> None:
        for name, allowed in (
            ("encoder", ("target", "context")),
            ("pool", POOLINGS),
            ("precision", ("auto", *_DTYPES)),
        ):
            if (value := getattr(self, name)) not in allowed:
                raise UserError(f"--{name} {value!r}: expected {', '.join(allowed[:-1])} or {allowed[-1]}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size}: at least 1")

    def batch(self, image_size: tuple[int, int]) -> int:
        """Images a forward pass.

        By default three to four thousand patches: enough rows for a CPU's matrix products to be at full speed; more
        would only take memory (what lies between two layers of a ViT-S is 19 MB then) and fall out of the caches.
        """
        return self.batch_size or (64 if max(image_size) <= 64 else 16)


@overload
def embed(
    model_or_ckpt: Method | str | Path, images_or_data: Images | str | Path, out: None = None, **options: Any
) -> Tensor: ...
@overload
def embed(
    model_or_ckpt: Method | str | Path, images_or_data: str | Path, out: str | Path, **options: Any
) -> Path: ...
def embed(  # type: ignore[misc]  # what the options are stands only here
    model_or_ckpt: Method | str | Path,
    images_or_data: Images | str | Path,
    out: str | Path | None = None,
    *,
    encoder: str = "target",
    pool: str = "mean",
    patches: bool = False,
    precision: str = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    num_heads: int | None = None,
    num_workers: int = 0,
    max_bad_fraction: float = 0.01,
    overwrite: bool = False,
    progress: bool = True,
) -> Tensor | Path:
    """Embed images: the frozen encoder's patches, pooled to one vector each. The model is left as it was.

    Args:
        model_or_ckpt: A model, or what `openjepa.load` takes.
        images_or_data: Images (B, c, H, W) that are preprocessed, a Pillow image, a list of paths and of pictures in
            memory (each passes ``model.preprocess``), or, as one str or Path, a data set: folder, tar, manifest or
            built-in.
        out: Parquet file for the embeddings of a data set; needs the extra `parquet`. What a killed process had
            done is kept beside it, and the same call goes on with it.
        encoder: `target`, as the paper, or `context`.
        pool: What is made of an image's patches: their `mean`, as the paper, `max`, `mean+max` side by side (2 D
            numbers), or means over 2 x 2 or 3 x 3 regions of the image side by side, `grid2` or `grid3` (4 D or 9 D),
            which also say where something is.
        patches: Also write the representation of each patch, N x D numbers an image.
        precision: `float32`, `bfloat16` (weights cast; the mean over patches stays float32), or `auto`: for a data set
            bfloat16 where this machine is faster in it, else float32.
        device: `cuda`, `mps`, `cpu`, or `auto`: for a data set the best there is, else where the model is.
        batch_size: Images a forward pass; by default 64 up to 64 px, else 16.
        num_heads: Attention heads, where the checkpoint does not say.
        num_workers: Processes that decode images; with 0 a thread works one batch ahead.
        max_bad_fraction: Images of a data set that cannot be read are left out and listed (in FILE.bad_files.jsonl);
            more than this fraction of them is an error.
        overwrite: Begin anew; ``out`` must be a file that this function wrote.
        progress: Show progress on standard error.

    Returns:
        Features (B, D) float32 on the CPU, in order (wider where ``pool`` says so); or, with ``out``, its path.

    Raises:
        UserError: A mistake in options, data or checkpoint, or features of a data set that are not finite; the
            message says what to do.
    """
    options = _Options(
        encoder=encoder, pool=pool, patches=patches, precision=precision, device=device, batch_size=batch_size,
        num_workers=num_workers, max_bad_fraction=max_bad_fraction, overwrite=overwrite, progress=progress,
    )  # fmt: skip
    if out is not None and not isinstance(images_or_data, (str, Path)):
        raise UserError(
            "out: a file of embeddings is made of a data set: give a folder, tar, manifest or built-in"
        )
    if patches and out is None:
        raise UserError("patches: they are written to a file: give out, or call the model's encoder")
    if out is not None:
        source = None if isinstance(model_or_ckpt, Method) else model_or_ckpt
        _check_out(Path(out), {"CHECKPOINT": source, "DATA": images_or_data}, overwrite=overwrite)
    if isinstance(model_or_ckpt, Method):
        model, name = model_or_ckpt, "a model in memory"
    else:
        model, name = load(model_or_ckpt, num_heads=num_heads), str(model_or_ckpt)
    if not isinstance(images_or_data, (str, Path)):
        return _embed_images(model, images_or_data, options)
    run = _DataRun(model, name, images_or_data, options)
    return run.collect() if out is None else run.write(Path(out))


def _check_out(out: Path, sources: Sources, *, overwrite: bool) -> None:
    """Refuse outputs in whose place something else lies, before any work."""
    if overwrite:
        check_embeddings(out, sources=sources)
    check_file(_listing(out), sources=sources, ours=is_bad_files, what="a list of unreadable images")


def _listing(out: Path) -> Path:
    """Where the images that cannot be read are listed."""
    return out.with_suffix(".bad_files.jsonl")


def frozen_encoder(
    encoder: VisionTransformer, *, device: str, precision: str, num_layers: int | None = None
) -> Encoder:
    """An encoder as `embed` runs it: (B, c, H, W) -> (B, N, D), without gradients, whose attention is then fused.

    With ``num_layers`` it gives the features of its last blocks, (B, L, N, D). Where device or precision is another, it
    is a copy; the encoder itself is never changed.
    """
    weight, dtype = encoder.patch_embed.proj.weight, _DTYPES[precision]
    if (weight.device.type, weight.dtype) != (device, dtype):
        encoder = copy.deepcopy(encoder).to(device, dtype)
    place = encoder.patch_embed.proj.weight.device

    @torch.inference_mode()
    def encode(images: Tensor) -> Tensor:
        images = images.to(place, dtype)
        return encoder(images) if num_layers is None else encoder.layers(images, num_layers)

    return encode


def _embed_images(model: Method, images: Images, options: _Options) -> Tensor:
    """Embeddings of images in memory, or of files named one by one."""
    network = _network(model, options)
    device = network.pos_embed.device.type
    if options.device != "auto":
        device = resolve_device(options.device, option="--device")
    precision = "float32" if options.precision == "auto" else options.precision
    featurise = pooled(
        frozen_encoder(network, device=device, precision=precision), options.pool,
        patch_size=network.patch_embed.patch_size,
    )  # fmt: skip
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise UserError(f"images: expected (B, c, H, W), got shape {tuple(images.shape)}")
        batches: Iterator[Tensor] = iter(images.split(options.batch((images.shape[2], images.shape[3]))))
    else:
        preprocess = _preprocess(model)
        listed = [images] if isinstance(images, Image.Image) else list(images)
        if not listed:
            raise UserError("images: an empty list; give at least one image")
        size = options.batch(preprocess.image_size)
        batches = (
            torch.cat([preprocess(image) for image in listed[start : start + size]])
            for start in range(0, len(listed), size)
        )
    return torch.cat([featurise(batch).cpu() for batch in batches])


def _network(model: Method, options: _Options) -> VisionTransformer:
    return model.target_encoder if options.encoder == "target" else model.context_encoder


def _preprocess(model: Method) -> Preprocess:
    if not isinstance(model.preprocess, Preprocess):
        raise UserError("this model does not know how its images are prepared: set model.preprocess")
    return model.preprocess


class _DataRun:
    """A data set on its way through an encoder."""

    def __init__(self, model: Method, name: str, data: str | Path, options: _Options) -> None:
        keep_freed_memory()
        torch.set_num_threads(available_cores())
        self.name, self.options = name, options
        self.network, self.preprocess = _network(model, options), _preprocess(model)
        self.device = resolve_device(options.device, option="--device")
        self.source = open_source(data)
        self.preprocess = self.preprocess.on(self.source)
        self.dataset = ImageDataset(
            self.source,
            image_size=self.preprocess.image_size,
            channels=self.preprocess.channels,
            interpolation=self.preprocess.interpolation,
            value_range=self.preprocess.value_range,
            cache="never",  # each image is read once
        )
        self.batch_size = options.batch(self.preprocess.image_size)

    def collect(self) -> Tensor:
        """The embeddings (B, D) of all images that can be read."""
        bad_files = self._bad_files(None)
        with ImageProgress(len(self.dataset), quiet=not self.options.progress) as shown:
            found = []
            for batch, features, _ in self._features(self._precision(None), bad_files):
                found.append(features)
                shown.update(int(batch.samples[-1]) + 1)
            self._report_left_out(sum(map(len, found)), shown, "")
        return torch.cat(found)

    def write(self, out: Path) -> Path:
        """Write them to a file, or go on with one that was begun."""
        with only_writer(out):
            return self._write(out)

    def _write(self, out: Path) -> Path:
        precision = self._precision(None if self.options.overwrite else unfinished(out))
        row_bytes = 4 * (self._size + self.network.embed_dim * self._num_patches * self.options.patches)
        file = EmbeddingFile(
            out,
            self._metadata(precision),
            num_samples=len(self.dataset),
            part_size=part_size(self.batch_size, row_bytes=row_bytes),
            overwrite=self.options.overwrite,
        )
        start, total = file.next_sample, len(self.dataset)
        listing = _listing(out)
        if not start:
            listing.unlink(missing_ok=True)  # of an earlier file of this name
        bad_files = self._bad_files(listing)
        with ImageProgress(total, done=start, quiet=not self.options.progress) as shown:
            if start:
                shown.say(f"{out}: going on after {start:,} of {total:,} images that are done")
            for batch, features, patches in self._features(precision, bad_files, start=start):
                paths = [self.source.path(sample) for sample in batch.samples.tolist()]
                tokens = patches.float().cpu().numpy() if self.options.patches else None  # (B, N, D)
                file.add(batch.samples, paths, features.numpy(), tokens)
                shown.update(int(batch.samples[-1]) + 1)
            self._report_left_out(file.num_rows, shown, f"; listed in {listing}")
            file.finish()
            shown.say(f"{out}: {file.num_rows:,} images, {self._size} features each, {precision}")
        return out

    def _features(
        self, precision: str, bad_files: BadFiles, *, start: int = 0
    ) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Each batch with its embeddings (B, D) float32 on the CPU and its patches (B, N, D) where they are."""
        encode = frozen_encoder(self.network, device=self.device, precision=precision)
        mean, std = self.preprocess.mean, self.preprocess.std
        for batch in evaluate_batches(
            self.dataset,
            np.arange(start, len(self.dataset)),
            batch_size=self.batch_size,
            num_workers=self.options.num_workers,
            bad_files=bad_files,
        ):
            patches = encode(normalise(batch.images.to(self.device), mean=mean, std=std))
            features = pool_patches(patches, self.options.pool, grid=self._grid).cpu()
            require_finite(features, self.name, mean=mean, std=std)
            yield batch, features, patches

    def _precision(self, earlier: dict[str, Any] | None) -> str:
        """As asked for; ``auto`` is measured once, and then what the unfinished file says."""
        if self.options.precision != "auto":
            return self.options.precision
        if earlier is not None and earlier.get("precision") in _DTYPES:
            return str(earlier["precision"])
        return "bfloat16" if bfloat16_pays(self.device) else "float32"

    @property
    def _size(self) -> int:
        """Numbers of an embedding."""
        return pooled_size(self.options.pool, self.network.embed_dim)

    @property
    def _grid(self) -> tuple[int, int]:
        (height, width), (rows, columns) = self.preprocess.image_size, self.network.patch_embed.patch_size
        return height // rows, width // columns

    @property
    def _num_patches(self) -> int:
        return self._grid[0] * self._grid[1]

    def _metadata(self, precision: str) -> dict[str, Any]:
        return {
            "checkpoint": self.name,
            "weights_sha256": weights_hash(self.network),
            "encoder": self.options.encoder,
            "data": {
                "name": self.source.name,
                "num_images": len(self.source),
                "fingerprint": self.source.fingerprint,
            },
            "preprocess": asdict(self.preprocess),
            "precision": precision,
            "embedding": {"size": self._size, "pooling": self.options.pool},
            "patches": {"grid": self._grid, "size": self.network.embed_dim} if self.options.patches else None,
            "openjepa": version("openjepa"),
        }

    def _bad_files(self, listing: Path | None) -> BadFiles:
        bad_files = BadFiles(
            listing, max_fraction=self.options.max_bad_fraction, num_images=len(self.source),
            option="--max-bad-fraction",
        )  # fmt: skip
        bad_files.note(BadFile(*problem) for problem in self.source.problems)
        return bad_files

    def _report_left_out(self, num_rows: int, shown: ImageProgress, where: str) -> None:
        if not num_rows:
            raise DataError(f"{self.source.name}: none of its {len(self.dataset)} images can be read{where}")
        if left_out := len(self.dataset) - num_rows:
            shown.say(f"{left_out:,} images that cannot be read were left out{where}")
