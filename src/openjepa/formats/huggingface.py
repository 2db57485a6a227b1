"""Hugging Face transformers' `IJepaModel`: our encoder's tensors under the names of its files.

The names are those that its files keep; in memory, versions of transformers call them differently.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from openjepa.models.transformer import LAYER_NORM_EPS
from openjepa.models.vit import VisionTransformer

# Ours -> theirs: each a whole part of a dotted name.
_NAMES = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def to_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an encoder under the names of `IJepaModel`'s files.

    Args:
        state: The encoder's ``state_dict()``.
    """
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "pos_embed":
            theirs["embeddings.position_embeddings"] = tensor
            continue
        module, _, kind = _BLOCK.sub("", name).rpartition(".")
        block = f"encoder.layer.{match[1]}." if (match := _BLOCK.match(name)) else ""
        if module == "attn.qkv":  # (3D, …): rows of queries, keys, values
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                theirs[f"{block}attention.attention.{part}.{kind}"] = rows.contiguous()
        else:
            theirs[f"{block}{_NAMES[module]}.{kind}"] = tensor
    return theirs


def huggingface_config(encoder: VisionTransformer) -> dict[str, Any]:
    """What `config.json` says of an encoder; images and patches must be square.

    The LayerNorms' epsilon is not the default of transformers: without it, features differ.
    """
    projection = encoder.patch_embed.proj.weight  # (D, c, h, w)
    (rows, columns), (height, width) = encoder.grid, encoder.patch_embed.patch_size
    assert (rows, height) == (columns, width), "square images and patches"
    block: Any = encoder.blocks[0]
    return {
        "architectures": ["IJepaModel"],
        "model_type": "ijepa",
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "layer_norm_eps": LAYER_NORM_EPS,
        "image_size": rows * height,
        "patch_size": height,
        "num_channels": projection.shape[1],
        "qkv_bias": True,
    }
