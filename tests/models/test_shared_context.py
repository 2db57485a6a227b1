"""The predictor that computes context tokens once for all target blocks."""

import pytest
import torch
from torch import Tensor

from openjepa.models.predictor import Predictor
from openjepa.models.transformer import AttentionPath, set_attention_path

B, C, M, NC, NT, D = 3, 2, 4, 9, 5, 32


def make(*, shared: bool, depth: int = 3) -> Predictor:
    torch.manual_seed(0)
    predictor = Predictor(
        (6, 6), embed_dim=D, predictor_dim=16, depth=depth, num_heads=2, shared_context=shared
    )
    for parameter in predictor.parameters():  # far from the small starting weights
        torch.nn.init.normal_(parameter, std=0.3)
    return predictor


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(B, C, NC, D, generator=generator)
    order = torch.rand(B, C + M, 36, generator=generator).argsort(dim=2)
    return context, order[:, :C, :NC], order[:, C:, :NT]


def masked(predictor: Predictor, context: Tensor, context_index: Tensor, target_index: Tensor) -> Tensor:
    """The same by definition: every pair by itself, and a mask that hides mask tokens from context tokens."""
    hidden_from = torch.zeros(NC + NT, NC + NT, dtype=torch.bool)
    hidden_from[:NC, NC:] = True
    out = torch.zeros(B, C, M, NT, D)
    for c in range(C):
        for m in range(M):
            visible = (
                predictor.predictor_embed(context[:, c])
                + predictor.predictor_pos_embed[0][context_index[:, c]]
            )
            queries = predictor.mask_token + predictor.predictor_pos_embed[0][target_index[:, m]]
            x = torch.cat([visible, queries], dim=1)
            for block in predictor.predictor_blocks:
                q, k, v = block.attn.qkv(block.norm1(x)).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
                scores = (q @ k.mT / 8**0.5).masked_fill(hidden_from, -torch.inf)
                mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
                x = x + block.attn.proj(mixed)
                x = x + block.mlp(block.norm2(x))
            out[:, c, m] = predictor.predictor_proj(predictor.predictor_norm(x[:, NC:]))
    return out


@pytest.mark.parametrize("path", ["matmul", "fused"])
def test_it_is_the_predictor_with_a_mask(path: AttentionPath, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    predictor = make(shared=True)
    set_attention_path(predictor, path)
    torch.testing.assert_close(predictor(*inputs), masked(predictor, *inputs), rtol=1e-4, atol=1e-4)


def test_one_block_deep_it_is_the_joint_predictor(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """In one block, what context tokens see does not reach the mask tokens."""
    one, other = make(shared=True, depth=1), make(shared=False, depth=1)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(*inputs), other(*inputs), rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    predictor = make(shared=True)
    set_attention_path(predictor, "matmul")
    predictor(*inputs).square().mean().backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
