"""The names of transformers' I-JEPA files: every tensor has one, none is lost."""

import torch

from openjepa.formats.huggingface import huggingface_config, to_huggingface
from openjepa.models.vit import VisionTransformer


def test_names_and_sizes() -> None:
    encoder = VisionTransformer((32, 32), (8, 8), embed_dim=8, depth=2, num_heads=2, mlp_ratio=3.0)
    state = encoder.state_dict()
    theirs = to_huggingface(state)
    assert sum(tensor.numel() for tensor in theirs.values()) == sum(t.numel() for t in state.values())
    assert theirs["embeddings.position_embeddings"] is state["pos_embed"]
    assert theirs["embeddings.patch_embeddings.projection.bias"] is state["patch_embed.proj.bias"]
    assert theirs["encoder.layer.1.layernorm_before.weight"] is state["blocks.1.norm1.weight"]
    assert theirs["encoder.layer.0.attention.output.dense.weight"] is state["blocks.0.attn.proj.weight"]
    assert theirs["encoder.layer.0.intermediate.dense.weight"] is state["blocks.0.mlp.fc1.weight"]
    assert theirs["encoder.layer.0.output.dense.bias"] is state["blocks.0.mlp.fc2.bias"]
    assert theirs["layernorm.weight"] is state["norm.weight"]
    key = theirs["encoder.layer.1.attention.attention.key.weight"]
    assert torch.equal(key, state["blocks.1.attn.qkv.weight"][8:16])
    config = huggingface_config(encoder)
    assert config["layer_norm_eps"] == 1e-6
    assert (config["image_size"], config["patch_size"], config["intermediate_size"]) == (32, 8, 24)
