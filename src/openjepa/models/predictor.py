"""The predictor: a narrow ViT that is told where to look and says what the target encoder would see there.

It takes the context tokens and, for each target block, mask tokens: one shared learned vector
plus the position of each patch to predict. It is applied once for every pair of a context and
a target block (I-JEPA paper, section 3). With a shared context, context tokens do not attend to mask
tokens: they are then the same for all target blocks, and are computed once. Parameter names are the authors'.

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
        shared_context: Compute context tokens once for all target blocks, instead of once for each.
        predicted_dim: Numbers K to predict of a patch; by default D.

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
        shared_context: bool = False,
        predicted_dim: int | None = None,
    ) -> None:
        super().__init__()
        if predictor_dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide predictor width {predictor_dim}")
        self.shared_context = shared_context
        self.predictor_embed = nn.Linear(embed_dim, predictor_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, predictor_dim))
        self.register_buffer("predictor_pos_embed", sincos_pos_embed(predictor_dim, grid))  # (1, N, P)
        self.predictor_blocks = nn.ModuleList(
            [Block(predictor_dim, num_heads, mlp_ratio) for _ in range(depth)]
        )
        self.predictor_norm = nn.LayerNorm(predictor_dim, eps=LAYER_NORM_EPS)
        self.predictor_proj = nn.Linear(predictor_dim, predicted_dim or embed_dim)
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
            (B, C, M, Nt, K) predictions.
        """
        return self.predictor_proj(self.answer(context, context_index, target_index))

    def answer(self, context: Tensor, context_index: Tensor, target_index: Tensor) -> Tensor:
        """What the last layer reads the prediction from, (B, C, M, Nt, P); arguments as `forward`'s."""
        visible = self.predictor_embed(context)
        visible = visible + self.predictor_pos_embed[0][context_index]  # (B, C, Nc, P)
        hidden = self.mask_token + self.predictor_pos_embed[0][target_index]  # (B, M, Nt, P)
        hidden = hidden[:, None].expand(-1, context.shape[1], -1, -1, -1)  # (B, C, M, Nt, P)
        attend = self._answer_shared if self.shared_context else self._answer
        return self.predictor_norm(attend(visible, hidden))

    def _answer(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """Every pair of a context and a target block by itself: (B, C, Nc, P), (B, C, M, Nt, P) -> (B, C, M, Nt, P)."""
        num_targets, num_hidden = hidden.shape[2:4]
        repeated = visible[:, :, None].expand(-1, -1, num_targets, -1, -1)
        tokens = torch.cat([repeated, hidden], dim=3).flatten(0, 2)  # (B·C·M, Nc + Nt, P)
        for block in self.predictor_blocks[:-1]:
            tokens = block(tokens)
        # Only the mask tokens are read, so the last block computes no other output.
        return self.predictor_blocks[-1](tokens, num_hidden).view(hidden.shape)

    def _answer_shared(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """Context tokens once for all target blocks; shapes as in ``_answer``."""
        tokens, queries = visible.flatten(0, 1), hidden.flatten(0, 1)  # (B·C, Nc, P), (B·C, M, Nt, P)
        last = len(self.predictor_blocks) - 1
        for depth, block in enumerate(self.predictor_blocks):
            assert isinstance(block, Block)
            tokens, queries = block.forward_shared(tokens, queries, only_groups=depth == last)
        return queries.view(hidden.shape)
