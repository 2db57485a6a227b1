"""Pictures of what a model sees and knows: its masks, its patch features as colours, nearest neighbours.

Each function gives one picture, (height, width, 3) uint8, made of square tiles.

Shapes: B images, C channels, N patches, D width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from openjepa.data.dataset import ImageDataset, spread
from openjepa.inputs import prepare
from openjepa.masks import MaskSampler
from openjepa.methods import Method

Picture = NDArray[np.uint8]

_TILE = 96  # pixels a side
_GAP = 6
_HIDDEN = 232  # grey of patches that are not shown
_WATCHED = 256  # images whose patches give the components
_TOKENS = 2**17  # patches embedded in search of neighbours: a minute for ViT-S on a CPU


def masks_picture(
    dataset: ImageDataset, sampler: MaskSampler, *, grid: tuple[int, int], seed: int, num: int = 5
) -> Picture:
    """Training views with sampled masks: the whole, what the context encoder sees, and each target block.

    Args:
        dataset: The run's images.
        sampler: The run's masks.
        grid: (rows, columns) of patches.
        seed: The run's seed.
        num: How many images.
    """
    samples = np.arange(min(num, len(dataset)))
    batch = dataset.batch(samples, 0, seed)
    masks = sampler(seed=seed, step=0, epochs=np.zeros_like(samples), samples=samples)
    blocks = torch.cat([_one_hot(masks.context, grid), _one_hot(masks.target, grid)], dim=1)
    rows = []
    for image, shown in zip(_tiles(batch.images), blocks.numpy(), strict=True):
        kept = [_fit(block, _TILE) for block in shown]
        rows.append([image, *(np.where(block[..., None], image, np.uint8(_HIDDEN)) for block in kept)])
    return _mosaic(rows)


def features_picture(model: Method, dataset: ImageDataset, *, num: int = 8) -> Picture:
    """Images above the principal components of their patch features, as red, green and blue, in two rows.

    In the second row the mean of each position is taken away first: only what differs between images is left.
    Components are those of many patches together, so a colour means the same in every image of a row.
    """
    images = dataset.evaluation_batch(spread(len(dataset), _WATCHED)).images
    features = torch.cat([_encode(model, part) for part in images.split(64)])  # (B, N, D)
    shown = torch.from_numpy(spread(len(images), num))
    assert model.architecture is not None
    rows = [
        [_fit(one, _TILE) for one in _colours(part, shown).unflatten(1, model.architecture.grid).numpy()]
        for part in (features, features - features.mean(dim=0))
    ]
    return _mosaic([_tiles(images[shown]), *rows])


def _colours(features: Tensor, shown: Tensor) -> Tensor:
    """Principal components 1 to 3 (n, N, 3) uint8 of the shown images among (B, N, D)."""
    flat = features.flatten(0, 1)
    flat = flat - flat.mean(dim=0)
    _, directions = torch.linalg.eigh(flat.T @ flat)  # ascending
    parts = flat @ directions.flip(1)[:, :3]  # (B·N, ≤3)
    parts = F.pad(parts, (0, 3 - parts.shape[1]))
    ordered = parts.sort(dim=0).values
    low, high = ordered[int(0.02 * len(parts))], ordered[int(0.98 * (len(parts) - 1))]
    colours = ((parts - low) / (high - low).clamp_min(1e-9)).clamp(0, 1) * 255
    return colours.unflatten(0, features.shape[:2])[shown].to(torch.uint8)


def neighbours_picture(model: Method, dataset: ImageDataset, *, num: int = 6, shown: int = 8) -> Picture:
    """In each row an image, a gap, and the images with the most similar features (cosine)."""
    assert model.architecture is not None
    rows, columns = model.architecture.grid
    samples = spread(len(dataset), max(num + shown, _TOKENS // (rows * columns)))
    batches = [dataset.evaluation_batch(part) for part in np.array_split(samples, -(-len(samples) // 64))]
    features = torch.cat([_encode(model, batch.images).mean(dim=1) for batch in batches])
    features = F.normalize(features - features.mean(dim=0), dim=1)
    images = torch.cat([batch.images for batch in batches])
    queries = torch.from_numpy(spread(len(images), num))
    similar = features[queries] @ features.T
    similar[torch.arange(len(queries)), queries] = -torch.inf
    nearest = similar.topk(min(shown, len(images) - 1), dim=1).indices
    blank = np.full((_TILE, _TILE // 4, 3), 255, np.uint8)
    return _mosaic([
        [*_tiles(images[query : query + 1]), blank, *_tiles(images[found])]
        for query, found in zip(queries.tolist(), nearest, strict=True)
    ])  # fmt: skip


@torch.no_grad()
def _encode(model: Method, images: Tensor) -> Tensor:
    """(B, C, H, W) uint8 -> (B, N, D), on the CPU."""
    return model.target_encoder(prepare(images, model)).float().cpu()


def _one_hot(index: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, M, n) patch indices -> (B, M, rows, columns) bool."""
    flat = torch.zeros(*index.shape[:2], grid[0] * grid[1], dtype=torch.bool)
    return flat.scatter_(2, index, True).unflatten(2, grid)


def _tiles(images: Tensor) -> list[Picture]:
    """(B, C, H, W) uint8 -> tiles (96, 96, 3); one channel is grey, of many the first three are shown."""
    if images.shape[1] < 3:
        images = images[:, :1].expand(-1, 3, -1, -1)
    return [_fit(image, _TILE) for image in images[:, :3].permute(0, 2, 3, 1).numpy()]


def _fit(image: NDArray[np.generic], side: int) -> Picture:
    """Scale to a square tile, letting pixels of small images stay visible."""
    small = max(image.shape[:2]) <= side
    picture = Image.fromarray(np.ascontiguousarray(image))
    method = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return np.asarray(picture.resize((side, side), method))


def _mosaic(rows: list[list[Picture]]) -> Picture:
    """Tiles in rows, white between them."""
    lines = [np.concatenate([np.pad(t, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255) for t in row], axis=1)
             for row in rows]  # fmt: skip
    whole: Picture = np.concatenate(lines, axis=0)[:-_GAP, :-_GAP]
    return whole
