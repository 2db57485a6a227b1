"""The predictor: a narrow ViT that is told where to look and says what the target encoder would see there.

It takes the context tokens and, for each target block, mask tokens: one shared learned vector
plus the position of each patch to predict. It is applied once for every pair of a context and
a target block (I-JEPA paper, section 3). Parameter names are the authors'.

Shapes: B batch, C contexts, M targets, Nc and Nt patches in each, D encoder's and P predictor's width.
"""

import torch
from torch import Tensor, nn

from openjepa.models.pos_embed import sincos_pos_embed
from openjepa.models.transformer import LAYER_NORM_EPS, Block, init_weights, rescale_residual_


class Predictor(nn.Module):
    """Predicts target features from context features and positions.

    Args:
        grid: (rows, columns) of patches.
        embed_dim: The encoder's width D.
        predictor_dim: The predictor's own width P, usually narrower.
        depth: Number of blocks.
        num_heads: Attention heads; must divide P.
        mlp_ratio: Hidden width of the MLP over P.

    Raises:
        ValueError: The heads do not divide the width.
    """

    predictor_pos_embed: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        *,
        embed_dim: int,
        predictor_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if predictor_dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide predictor width {predictor_dim}")
        self.predictor_embed = nn.Linear(embed_dim, predictor_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, predictor_dim))
        self.register_buffer("predictor_pos_embed", sincos_pos_embed(predictor_dim, grid))  # (1, N, P)
        self.predictor_blocks = nn.ModuleList(
            [Block(predictor_dim, num_heads, mlp_ratio) for _ in range(depth)]
        )
        self.predictor_norm = nn.LayerNorm(predictor_dim, eps=LAYER_NORM_EPS)
        self.predictor_proj = nn.Linear(predictor_dim, embed_dim)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        rescale_residual_(self)

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor) -> Tensor:
        """Predict every target block from every context block.

        Args:
            context: (B, C, Nc, D) features of the context encoder.
            context_index: (B, C, Nc) int64, where they are.
            target_index: (B, M, Nt) int64, where to predict.

        Returns:
            (B, C, M, Nt, D) predicted features.
        """
        batch, num_contexts, num_visible, _ = context.shape
        _, num_targets, num_hidden = target_index.shape
        width = self.mask_token.shape[-1]

        visible = self.predictor_embed(context)
        visible = visible + self.predictor_pos_embed[0][context_index]  # (B, C, Nc, P)
        hidden = self.mask_token + self.predictor_pos_embed[0][target_index]  # (B, M, Nt, P)

        pairs = (batch, num_contexts, num_targets)
        tokens = torch.cat(
            [
                visible[:, :, None].expand(*pairs, num_visible, width),
                hidden[:, None].expand(*pairs, num_hidden, width),
            ],
            dim=3,
        ).flatten(0, 2)  # (B·C·M, Nc + Nt, P)
        for block in self.predictor_blocks[:-1]:
            tokens = block(tokens)
        # Only the mask tokens are read, so the last block computes no other output.
        tokens = self.predictor_blocks[-1](tokens, num_hidden)
        predictions = self.predictor_proj(self.predictor_norm(tokens))
        return predictions.unflatten(0, pairs)
