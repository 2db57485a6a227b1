"""Start a run from the weights of another: domain adaptation, with images of another size or number of channels.

    openjepa pretrain scans --channels 1 --init-from runs/photos --out runs/scans --max-minutes 20

The new run takes the encoder's shape and patch from the checkpoint. Its context encoder, and for I-JEPA the target
encoder, begin as the checkpoint's target encoder; the predictor too where both are alike, without its last layer
where they predict different things. Positions are a fixed
function of the grid, so that another image size needs no change.
"""

from typing import Any

import torch
from torch import Tensor

from openjepa.errors import CheckpointError
from openjepa.methods import IJEPA, Method
from openjepa.models.architecture import Architecture

_PATCHES = "patch_embed.proj.weight"


def model_settings(architecture: Architecture) -> dict[str, Any]:
    """The section `model` of a configuration that makes this architecture again."""
    shape = architecture
    return {
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        "mlp_ratio": shape.mlp_ratio,
        "patch_size": shape.patch_size,
        "predictor_dim": shape.predictor_dim,
        "predictor_depth": shape.predictor_depth,
        "predictor_heads": shape.predictor_heads,
        "shared_context": shape.shared_context,
    }


def start_from(model: Method, earlier: Method, *, name: str) -> str:
    """Copy the weights of an earlier model into a new one.

    Args:
        model: The new one; changed in place.
        earlier: The earlier one; its target encoder is taken.
        name: What to call it in messages.

    Returns:
        What was taken and what was adapted, for a log.

    Raises:
        CheckpointError: The encoders differ in width, depth, patch or attention heads.
    """
    state = dict(earlier.target_encoder.state_dict())
    found, channels = state[_PATCHES].shape[1], model.context_encoder.patch_embed.proj.weight.shape[1]
    state[_PATCHES] = adapt_channels(state[_PATCHES], channels)
    own = model.context_encoder.state_dict()
    state["pos_embed"] = own["pos_embed"]
    wrong = [
        f"  {key}: {tuple(state[key].shape) if key in state else 'missing'} there, "
        f"{tuple(own[key].shape) if key in own else 'missing'} here"
        for key in sorted(own.keys() | state.keys())
        if key not in own or key not in state or own[key].shape != state[key].shape
    ]
    if (there := earlier.shape.num_heads) != (here := model.shape.num_heads):
        wrong.append(f"  attention heads: {there} there, {here} here")
    if wrong:
        raise CheckpointError(
            "\n".join([f"--init-from {name}: its encoder has another shape than this run's:", *wrong[:10]])
            + "\nLeave the settings of `model` to the checkpoint, or start without --init-from"
        )
    for encoder in {id(one): one for one in (model.context_encoder, model.target_encoder)}.values():
        encoder.load_state_dict(state)
    if isinstance(model, IJEPA) and model.teacher is not None:
        model.renew_teacher()
    taken = ["encoder"]
    if channels != found:
        taken[0] += f" (its {found} input channels adapted to {channels})"
    if _take_predictor(model, earlier):
        taken.append("predictor")
    return f"{' and '.join(taken)} of {name}"


def _take_predictor(model: Method, earlier: Method) -> bool:
    """Copy the predictor where both are alike; its last layer only where both predict the same thing."""
    there, here = earlier.predictor.state_dict(), model.predictor.state_dict()
    there["predictor_pos_embed"] = here["predictor_pos_embed"]
    if type(earlier) is not type(model):
        there |= {key: tensor for key, tensor in here.items() if key.startswith("predictor_proj.")}
    if {key: tensor.shape for key, tensor in there.items()} != {key: t.shape for key, t in here.items()}:
        return False
    model.predictor.load_state_dict(there)
    return True


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """A patch projection (D, c, h, w) for another number of channels.

    Each new channel gets the mean of the old ones, scaled so that an image whose channels are all alike gives the
    same tokens: from RGB to grey that is the sum of the three.
    """
    old = weight.shape[1]
    if channels == old:
        return weight
    mean = weight.mean(dim=1, keepdim=True)
    return torch.cat([mean] * channels, dim=1) * (old / channels)
