"""The Vision Transformer encoder: patches in, one feature a patch out. No class token (I-JEPA paper, section 3).

Parameter names are the authors' (and timm's): `pos_embed`, `patch_embed.proj`, `blocks.L.…`, `norm`.

Shapes: B batch, c channels, N patches of the grid, n patches given, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.models.pos_embed import interpolate_pos_embed, sincos_pos_embed
from openjepa.models.transformer import LAYER_NORM_EPS, Block, gather_tokens, init_weights, rescale_residual_


@dataclass(frozen=True)
class ViTSize:
    """Width, depth, heads and MLP ratio of a named encoder, and the predictor that goes with it."""

    embed_dim: int
    depth: int
    num_heads: int
    predictor_dim: int
    predictor_depth: int
    mlp_ratio: float = 4.0


# The paper's sizes (appendix A; predictor 384 wide, 6/12/16 deep), and smaller ones for CPUs and small images.
SIZES: dict[str, ViTSize] = {
    "vit_pico": ViTSize(64, 4, 2, 32, 2),
    "vit_nano": ViTSize(128, 4, 4, 64, 2),
    "vit_mini": ViTSize(192, 4, 4, 64, 2),
    "vit_micro": ViTSize(192, 6, 3, 96, 3),
    "vit_tiny": ViTSize(192, 12, 3, 96, 6),
    "vit_small": ViTSize(384, 12, 6, 192, 6),
    "vit_base": ViTSize(768, 12, 12, 384, 6),
    "vit_large": ViTSize(1024, 24, 16, 384, 12),
    "vit_huge": ViTSize(1280, 32, 16, 384, 12),
    "vit_giant": ViTSize(1408, 40, 16, 384, 16, mlp_ratio=48 / 11),
}


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each one linearly.

    The projection is stored as a convolution's weight (the authors' key and shape) and
    computed as a matrix product, so that only the patches asked for need be projected.
    """

    def __init__(self, patch_size: tuple[int, int], in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        # As a linear layer from one patch (Xavier): the tokens' content is then as large as their position
        # embedding. With std 0.02 it would be five times smaller at 32 px, and the first targets mostly position.
        nn.init.xavier_uniform_(self.proj.weight.view(embed_dim, -1))
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """(B, c, H, W) -> (B, N, D), or (B, n, D) for the patches in ``index`` (B, n)."""
        patches = self.cut(images)
        if index is not None:
            patches = gather_tokens(patches, index)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def cut(self, images: Tensor) -> Tensor:
        """The pixels of each patch: (B, c, H, W) -> (B, N, c·h·w)."""
        (height, width), (batch, channels) = self.patch_size, images.shape[:2]
        rows, columns = images.shape[2] // height, images.shape[3] // width
        patches = images.reshape(batch, channels, rows, height, columns, width)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


class VisionTransformer(nn.Module):
    """ViT encoder over all patches of an image or over chosen ones.

    Args:
        image_size: (height, width) in pixels that the position table is made for.
        patch_size: (height, width) of a patch in pixels; must divide the image size.
        in_channels: Channels of the images.
        embed_dim: Width D.
        depth: Number of blocks.
        num_heads: Attention heads; must divide D.
        mlp_ratio: Hidden width of the MLP over D.

    Raises:
        ValueError: The patch does not divide the image, or the heads do not divide the width.
    """

    pos_embed: Tensor

    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: tuple[int, int],
        *,
        in_channels: int = 3,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if image_size[0] % patch_size[0] or image_size[1] % patch_size[1]:
            raise ValueError(
                f"patch {patch_size} does not divide image {image_size} (height, width in pixels)"
            )
        if embed_dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide width {embed_dim}")
        self.grid = (image_size[0] // patch_size[0], image_size[1] // patch_size[1])
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.register_buffer("pos_embed", sincos_pos_embed(embed_dim, self.grid))  # (1, N, D), never trained
        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim)
        self.blocks = nn.ModuleList([Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth)])
        self.norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.apply(init_weights)
        rescale_residual_(self)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Features of patches, final LayerNorm included.

        Args:
            images: (B, c, H, W), normalised; H and W multiples of the patch, any grid
                (positions are interpolated off the native one).
            index: (B, n) int64 patches to encode (row-major), or None for all.

        Returns:
            (B, n, D), or (B, N, D) without an index.
        """
        return self.encode(self.embed(images, index))

    def embed(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Patch tokens with their positions added: (B, c, H, W) -> (B, N or n, D)."""
        tokens = self.patch_embed(images, index)
        height, width = self.patch_embed.patch_size
        grid = (images.shape[2] // height, images.shape[3] // width)
        positions = interpolate_pos_embed(self.pos_embed, self.grid, grid)
        return tokens + (positions if index is None else gather_tokens(positions, index))

    def layers(self, images: Tensor, num: int) -> Tensor:
        """Features after each of the last blocks, each through the final LayerNorm, the last one last.

        Args:
            images: (B, c, H, W), as `forward`'s.
            num: How many blocks; all where there are fewer.

        Returns:
            (B, L, N, D) with L = min(num, depth); the last of L is what `forward` gives.
        """
        tokens, found = self.embed(images), []
        for place, block in enumerate(self.blocks):
            tokens = block(tokens)
            if place >= len(self.blocks) - num:
                found.append(self.norm(tokens))
        return torch.stack(found, dim=1)

    def encode(self, tokens: Tensor) -> Tensor:
        """The blocks and the final LayerNorm: (B, n, D) -> (B, n, D)."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)
