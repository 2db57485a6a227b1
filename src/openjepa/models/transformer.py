"""The pre-norm transformer block shared by encoder and predictor, and its two attention paths.

Shapes: B batch, n tokens, D width, H heads, d = D / H.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYER_NORM_EPS = 1e-6
AttentionPath = Literal["matmul", "fused"]
_SHORT = 512  # tokens; measured: 1.7 to 2 times as fast at 64 and 196, level at 784


class Attention(nn.Module):
    """Multi-head self-attention; ``num_queries`` limits the output to the last tokens.

    Two paths compute the same thing: ``fused`` is PyTorch's ``scaled_dot_product_attention``,
    best on GPUs and long sequences; ``matmul`` writes out the two products and the softmax,
    which on some CPUs is several times faster backward at the 10-200 tokens met here. Which one a
    run trains with is measured once by `openjepa.runtime` and set with `set_attention_path`. Where
    there is no backward pass, as in the target encoder, it is ``fused``, but for bfloat16 on CPUs: there
    the products are twice as fast up to a few hundred tokens (docs/log.md).
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.path: AttentionPath = "fused"
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """Attend. (B, n, D) -> (B, n, D), or (B, num_queries, D) for the last tokens only."""
        batch, num_tokens, dim = x.shape
        shape = (batch, -1, self.num_heads, dim // self.num_heads)
        if num_queries is None or num_queries == num_tokens:
            q, k, v = self.qkv(x).reshape(batch, num_tokens, 3, *shape[2:]).permute(2, 0, 3, 1, 4)
        else:  # keys and values of all tokens, queries of the last ones: a third less of the projection
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x[:, -num_queries:], weight[:dim], bias[:dim]).reshape(shape).transpose(1, 2)
            keys_values = F.linear(x, weight[dim:], bias[dim:]).reshape(batch, num_tokens, 2, *shape[2:])
            k, v = keys_values.permute(2, 0, 3, 1, 4)
        return self.proj(self._attend(q, k, v).transpose(1, 2).reshape(batch, -1, dim))

    def forward_shared(
        self, context: Tensor, groups: Tensor, *, only_groups: bool = False
    ) -> tuple[Tensor | None, Tensor]:
        """Attend among context tokens, and from each of G groups to the context and to itself.

        Args:
            context: (B, n, D).
            groups: (B, G, m, D).
            only_groups: Leave the context's own attention out.

        Returns:
            Of the same shapes; None for the context where it was left out.
        """
        _, num_groups, num_queries, dim = groups.shape
        heads = (3, self.num_heads, dim // self.num_heads)
        q, k, v = self.qkv(context).unflatten(2, heads).permute(2, 0, 3, 1, 4)  # (B, H, n, d)
        own_q, own_k, own_v = (
            self.qkv(groups).unflatten(3, heads).permute(3, 0, 4, 1, 2, 5)
        )  # (B, H, G, m, d)
        # The softmax is over both; the context's keys are multiplied once, with the queries of all groups.
        own_q = own_q * own_q.shape[-1] ** -0.5
        to_context = (own_q.flatten(2, 3) @ k.transpose(-2, -1)).unflatten(2, (num_groups, num_queries))
        to_own = own_q @ own_k.transpose(-2, -1)  # (B, H, G, m, m)
        weights = torch.cat([to_context, to_own], dim=-1).softmax(dim=-1)
        from_context, from_own = weights.split([k.shape[2], num_queries], dim=-1)
        mixed = (from_context.flatten(2, 3) @ v).unflatten(2, (num_groups, num_queries)) + from_own @ own_v
        answer = self.proj(mixed.permute(0, 2, 3, 1, 4).reshape(groups.shape))
        if only_groups:
            return None, answer
        return self.proj(self._attend(q, k, v).transpose(1, 2).reshape(context.shape)), answer

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, n, d) queries, (B, H, m, d) keys and values -> (B, H, n, d)."""
        path = self.path
        if not torch.is_grad_enabled():
            short = q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= _SHORT
            path = "matmul" if short else "fused"
        if path == "fused":
            return F.scaled_dot_product_attention(q, k, v)
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, D) -> (B, n, D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))

    def forward(self, x: Tensor, num_outputs: int | None = None) -> Tensor:
        """(B, n, D) -> (B, n, D); with ``num_outputs``, only the last tokens are computed and returned."""
        residual = x if num_outputs is None else x[:, -num_outputs:]
        x = residual + self.attn(self.norm1(x), num_outputs)
        return x + self.mlp(self.norm2(x))

    def forward_shared(
        self, context: Tensor, groups: Tensor, *, only_groups: bool = False
    ) -> tuple[Tensor, Tensor]:
        """As `Attention.forward_shared`, but with ``only_groups`` the context comes back as it was."""
        attended, grouped = self.attn.forward_shared(
            self.norm1(context), self.norm1(groups), only_groups=only_groups
        )
        groups = groups + grouped
        groups = groups + self.mlp(self.norm2(groups))
        if attended is None:
            return context, groups
        context = context + attended
        return context + self.mlp(self.norm2(context)), groups


def init_weights(module: nn.Module) -> None:
    """Truncated normal (std 0.02, cut at ±2) for linear layers, zero biases, unit LayerNorms (use with ``apply``)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-2.0, b=2.0)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


@torch.no_grad()
def rescale_residual_(module: nn.Module) -> None:
    """Shrink block l's two output projections by 1/√(2l), so that the residual stream does not grow with depth."""
    blocks = [block for block in module.modules() if isinstance(block, Block)]
    for layer, block in enumerate(blocks, start=1):
        block.attn.proj.weight.div_(math.sqrt(2 * layer))
        block.mlp.fc2.weight.div_(math.sqrt(2 * layer))


def set_attention_path(module: nn.Module, path: AttentionPath) -> None:
    """Make every attention layer below ``module`` use this path."""
    for layer in module.modules():
        if isinstance(layer, Attention):
            layer.path = path


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens by position: (B or 1, N, D) and (B, n) -> (B, n, D)."""
    if tokens.shape[0] == 1:
        return tokens[0][index]
    return torch.gather(tokens, 1, index[..., None].expand(-1, -1, tokens.shape[-1]))
