"""The optimisers of a method's trainable parameters, and their state as named tensors."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from openjepa.errors import CheckpointError
from openjepa.models.transformer import Block
from openjepa.muon import Muon

OptimizerName = Literal["adamw", "muon"]

_MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    Muon: ("momentum_buffer",),
}


def make_optimizers(
    model: nn.Module,
    *,
    name: OptimizerName = "adamw",
    betas: tuple[float, float] = (0.9, 0.999),
    muon_ratio: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> list[torch.optim.Optimizer]:
    """AdamW for all trainable parameters, or Muon for the matrices of transformer blocks and AdamW for the others.

    Learning rate and weight decay are set at every step, by `openjepa.train.train_step`; groups whose ``decay`` is
    true are decayed: weights of two and more dimensions, not biases and norms.

    Args:
        model: What is trained.
        name: adamw or muon.
        betas: AdamW's.
        muon_ratio: Length of Muon's updates over AdamW's at the same learning rate.
        dtype: What Muon computes in.
    """
    hidden = [
        parameter
        for block in model.modules()
        if name == "muon" and isinstance(block, Block)
        for parameter in block.parameters()
        if parameter.requires_grad and parameter.ndim == 2
    ]
    taken = {id(parameter) for parameter in hidden}
    rest = [
        (key, parameter)
        for key, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in taken
    ]
    decayed = [parameter for key, parameter in rest if parameter.ndim > 1 and not key.endswith("bias")]
    others = [parameter for key, parameter in rest if parameter.ndim <= 1 or key.endswith("bias")]
    groups = [{"params": decayed, "decay": True}, {"params": others, "decay": False, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)]
    if hidden:
        optimizers.append(Muon([{"params": hidden, "decay": True}], lr=0.0, ratio=muon_ratio, dtype=dtype))
    return optimizers


def optimizer_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimisers' moments under `MOMENT.PARAMETER`."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        if parameter in optimizer.state
        for moment in _MOMENTS[type(optimizer)]
    }


def moments_to_parameters(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Move the moments to where their parameters are: those of a resumed run were read before the model was moved."""
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(
                    value, Tensor
                ):  # the count of steps too: a fused AdamW has it beside its parameter
                    state[name] = value.to(parameter.device)


def load_optimizer_tensors(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Put saved moments back.

    Raises:
        CheckpointError: A trained parameter has no saved moments.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter in (one for group in optimizer.param_groups for one in group["params"]):
            try:
                saved = {
                    moment: tensors[f"{moment}.{names[parameter]}"] for moment in _MOMENTS[type(optimizer)]
                }
            except KeyError as error:
                raise CheckpointError(
                    f"the checkpoint's optimiser has no {error}: it is of another model or optimiser"
                ) from None
            optimizer.state[parameter] = {
                moment: tensor.to(parameter.device) for moment, tensor in saved.items()
            }
