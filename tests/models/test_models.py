"""Encoder and predictor: positions, patches, sizes, and the parts of them that are computed once."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openjepa.errors import UserError
from openjepa.models.architecture import Architecture
from openjepa.models.pos_embed import interpolate_pos_embed, sincos_pos_embed
from openjepa.models.predictor import Predictor
from openjepa.models.transformer import set_attention_path
from openjepa.models.vit import VisionTransformer

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "pos_embed.safetensors")


def encoder(
    image: tuple[int, int] = (16, 24), patch: tuple[int, int] = (4, 6), channels: int = 3
) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(image, patch, in_channels=channels, embed_dim=16, depth=2, num_heads=2).eval()


@pytest.mark.parametrize(("name", "width", "side"), [("d48_g8", 48, 8), ("d384_g14", 384, 14)])
def test_positions_are_the_authors(name: str, width: int, side: int) -> None:
    torch.testing.assert_close(sincos_pos_embed(width, (side, side))[0], GOLDEN[name], rtol=0, atol=1e-6)


def test_positions_of_the_largest_encoder() -> None:
    ours = sincos_pos_embed(1280, (16, 16))[0, [0, 1, 17, 100, 255]]
    torch.testing.assert_close(ours, GOLDEN["d1280_g16_rows"], rtol=0, atol=1e-6)


def test_rectangular_positions_agree_with_square_ones() -> None:
    square, wide = sincos_pos_embed(16, (5, 5)), sincos_pos_embed(16, (3, 5))
    torch.testing.assert_close(wide[0], square[0, :15])


def test_interpolated_positions_keep_the_corners_in_place() -> None:
    table = sincos_pos_embed(32, (8, 8))
    assert interpolate_pos_embed(table, (8, 8), (8, 8)) is table
    large = interpolate_pos_embed(table, (8, 8), (16, 12)).reshape(16, 12, 32)
    small = interpolate_pos_embed(large.reshape(1, -1, 32), (16, 12), (8, 8))
    assert torch.nn.functional.cosine_similarity(small, table, dim=-1).min() > 0.95


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_channels_rectangles_and_resolutions(channels: int) -> None:
    model = encoder(channels=channels)
    assert model.grid == (4, 4)
    assert model(torch.randn(2, channels, 16, 24)).shape == (2, 16, 16)
    assert model(torch.randn(2, channels, 32, 36)).shape == (2, 48, 16)  # 8 × 6 patches


def test_layers_are_what_blocks_give_through_the_last_norm() -> None:
    model, images = encoder(), torch.randn(2, 3, 16, 24)
    both = model.layers(images, 2)
    assert both.shape == (2, 2, 16, 16)
    torch.testing.assert_close(both[:, 0], model.norm(model.blocks[0](model.embed(images))))
    torch.testing.assert_close(both[:, 1], model(images))
    assert torch.equal(model.layers(images, 1), both[:, 1:])
    assert torch.equal(model.layers(images, 9), both)


def test_an_index_picks_patches_before_they_see_each_other() -> None:
    model, images = encoder(), torch.randn(2, 3, 16, 24)
    index = torch.tensor([[3, 7, 1], [0, 2, 15]])
    picked = model(images, index)
    hidden = images.clone()
    hidden[0, :, 12:] = 0  # the last row of patches, none of which the first image shows
    torch.testing.assert_close(model(hidden, index)[0], picked[0])
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(model(images, everything), model(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(images, index[:, [2, 0, 1]]), picked[:, [2, 0, 1]], rtol=1e-5, atol=1e-5)


def test_the_patch_projection_is_the_convolution() -> None:
    model, images = encoder(), torch.randn(2, 3, 16, 24)
    convolved = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.patch_embed(images), convolved, rtol=1e-5, atol=1e-5)


def test_attention_paths_agree_forward_and_backward() -> None:
    gradients = []
    images = torch.randn(2, 3, 16, 24)
    for path in ("matmul", "fused"):
        model = encoder()
        set_attention_path(model, path)
        model(images).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_predictions_are_made_pair_by_pair() -> None:
    torch.manual_seed(0)
    model = Predictor((4, 4), embed_dim=16, predictor_dim=8, depth=2, num_heads=2).eval()
    context, context_index = torch.randn(3, 2, 5, 16), torch.randint(16, (3, 2, 5))
    target_index = torch.randint(16, (3, 4, 6))
    together = model(context, context_index, target_index)
    assert together.shape == (3, 2, 4, 6, 16)
    for c in range(2):
        for m in range(4):
            alone = model(context[:, c : c + 1], context_index[:, c : c + 1], target_index[:, m : m + 1])
            torch.testing.assert_close(alone[:, 0, 0], together[:, c, m], rtol=1e-5, atol=1e-5)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        VisionTransformer((30, 32), (4, 4), embed_dim=16, depth=1, num_heads=2)
    images = {"image_size": (32, 32), "patch_size": (4, 4), "in_channels": 3}
    shape = {**images, "embed_dim": 64, "depth": 1, "mlp_ratio": 4.0}
    with pytest.raises(UserError, match="nearest that do: 4"):
        Architecture(**shape, num_heads=5, predictor_dim=32, predictor_depth=1, predictor_heads=4)
    with pytest.raises(UserError, match="multiple of 4"):
        Architecture(**shape, num_heads=4, predictor_dim=30, predictor_depth=1, predictor_heads=2)
