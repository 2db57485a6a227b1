"""How much arithmetic pretraining is: operations of the networks' matrix products, two for a multiply-add.

A backward pass counts as two forward ones. Left out are softmax, norms and other work by element, health checks, and
the optimiser's own products: Muon's do not depend on the batch, and beside 64 images of 32 px they are a third as much
again (58 % in the masked autoencoder).

Legend: N patches of an image, C contexts and M targets of Nc and Nt patches, D and P widths of encoder and predictor.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from openjepa.config import Config
from openjepa.descriptions import NUM_FITTED
from openjepa.masks import make_masks
from openjepa.methods.maskfeat import num_numbers
from openjepa.models.architecture import Architecture, architecture_of

_MLP_RATIO = 4.0  # of every predictor


def pretraining_flops(config: Config, rows: Sequence[Mapping[str, Any]], *, num_images: int) -> float:
    """Operations of a stage of pretraining so far.

    Args:
        config: The stage's resolved settings.
        rows: Its lines of metrics.jsonl: what an image costs is the mean over them.
        num_images: Of the data set.
    """
    tokens = [(row["context_patches"], row["target_patches"]) for row in rows]
    costs = {
        pair: image_flops(config, context_patches=pair[0], target_patches=pair[1]) for pair in set(tokens)
    }
    trained = rows[-1]["images"] * statistics.mean(costs[pair] for pair in tokens)
    crops = rows[-1]["images"] / config.objective.target_reuse
    return trained + description_flops(config, num_images=num_images, crops=crops)


def image_flops(config: Config, *, context_patches: int, target_patches: int) -> float:
    """Operations of one image in one training step.

    Args:
        config: Resolved settings.
        context_patches: Nc.
        target_patches: Nt.
    """
    shape = architecture_of(config)
    num_contexts, num_targets = _num_blocks(config, shape)
    target_pass = _encoder(shape, math.prod(shape.grid)) if config.method == "ijepa" else 0.0
    trained = _encoder(shape, context_patches)
    trained += _predictor(config, shape, context_patches, num_targets, target_patches)
    return target_pass / config.objective.target_reuse + 3 * num_contexts * trained


def description_flops(config: Config, *, num_images: int, crops: float) -> float:
    """Operations of the teacher's passes over whole images, where they are targets.

    Args:
        config: Resolved settings.
        num_images: Of the data set.
        crops: That the teacher was asked about: the image of each is described once by each teacher.
    """
    if not config.objective.whole_weight:
        return 0.0
    shape = architecture_of(config)
    generations = config.ema.generations
    described = min(num_images, max(NUM_FITTED, crops / generations))
    return generations * described * _encoder(shape, math.prod(shape.grid))


def _encoder(shape: Architecture, tokens: int) -> float:
    """A forward pass of the encoder over some patches of an image."""
    projection = 2 * tokens * shape.in_channels * math.prod(shape.patch_size) * shape.embed_dim
    blocks = shape.depth * _block(tokens, tokens, shape.embed_dim, shape.mlp_ratio)
    return projection + blocks


def _predictor(config: Config, shape: Architecture, context: int, num_targets: int, target: int) -> float:
    """A forward pass of the predictor from one context to all targets."""
    width = shape.predictor_dim
    if shape.shared_context:
        queries = num_targets * _block(target, context + target, width, _MLP_RATIO)
        block = _block(context, context, width, _MLP_RATIO) + queries
    else:
        block = num_targets * _block(context + target, context + target, width, _MLP_RATIO)
    enter = 2 * context * shape.embed_dim * width
    leave = 2 * num_targets * target * width * _predicted_numbers(config, shape)
    return enter + shape.predictor_depth * block + leave


def _block(tokens: int, keys: int, width: int, mlp_ratio: float) -> float:
    """A forward pass of a block whose tokens attend to so many keys: 24·n·D² + 4·n·n·D at a ratio of 4."""
    return tokens * ((8 + 4 * mlp_ratio) * width**2 + 4 * keys * width)


def _predicted_numbers(config: Config, shape: Architecture) -> int:
    """Numbers that the predictor predicts of a patch."""
    if config.method == "mae":
        return shape.in_channels * math.prod(shape.patch_size)
    if config.method == "maskfeat":
        return num_numbers(shape.in_channels, shape.patch_size)
    return shape.embed_dim


def _num_blocks(config: Config, shape: Architecture) -> tuple[int, int]:
    """Context and target blocks of an image: C and M."""
    sampler = make_masks(config.masks.name, grid=shape.grid, **config.masks.settings())
    first = np.zeros(1, np.int64)
    masks = sampler(seed=config.seed, step=0, epochs=first, samples=first)
    return masks.context.shape[1], masks.target.shape[1]
