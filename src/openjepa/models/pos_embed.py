"""Fixed 2-D sine-cosine position embeddings, for any rectangular grid of patches (I-JEPA paper, section 3)."""

import torch
from torch import Tensor
from torch.nn import functional as F

_BASE = 10_000.0  # longest wavelength, from "Attention is all you need"


def sincos_pos_embed(embed_dim: int, grid: tuple[int, int]) -> Tensor:
    """Position table of a grid of patches.

    The first half of the channels encodes the column, the second half the row (the order of
    the published checkpoints); within a half, all sines come before all cosines.

    Args:
        embed_dim: Width D, a multiple of 4.
        grid: (rows, columns) of patches.

    Returns:
        (1, rows·columns, D) float32, row-major.

    Raises:
        ValueError: D is not a multiple of 4.
    """
    if embed_dim % 4:
        nearest = max(4, round(embed_dim / 4) * 4)
        raise ValueError(
            f"width {embed_dim} cannot hold 2-D sine-cosine positions: use a multiple of 4, say {nearest}"
        )
    quarter = embed_dim // 4
    frequency = _BASE ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (columns, rows)]  # (N, D/4) each
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return table.float()[None]


def interpolate_pos_embed(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample a position table to another grid, bicubic, antialiased when shrinking.

    Args:
        table: (1, N, D) with N = old rows · old columns.
        old: Grid the table was made for.
        new: Grid wanted.

    Returns:
        (1, N', D); the table itself when the grids are equal.
    """
    if old == new:
        return table
    image = table.reshape(1, *old, -1).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    image = F.interpolate(image.float(), size=new, mode="bicubic", align_corners=False, antialias=True)
    return image.flatten(2).transpose(1, 2).to(table.dtype)  # (1, N', D)
