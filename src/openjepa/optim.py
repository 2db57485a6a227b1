"""AdamW over a method's trainable parameters, and its state as named tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from openjepa.errors import CheckpointError

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def make_optimizer(model: nn.Module, *, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.AdamW:
    """AdamW whose first group is decayed (weights of two and more dimensions), the second not (biases, norms).

    Learning rate and weight decay are set at every step, by `openjepa.train.train_step`.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if parameter.ndim > 1 and not name.endswith("bias")]
    others = [parameter for name, parameter in trained if parameter.ndim <= 1 or name.endswith("bias")]
    groups = [{"params": decayed, "decay": True}, {"params": others, "decay": False, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments under `MOMENT.PARAMETER`."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in _MOMENTS
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put saved moments back.

    Raises:
        CheckpointError: A trained parameter has no saved moments.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        try:
            saved = {moment: tensors[f"{moment}.{name}"] for moment in _MOMENTS}
        except KeyError as error:
            raise CheckpointError(
                f"the checkpoint's optimiser has no {error}: it is of another model"
            ) from None
        optimizer.state[parameter] = {moment: tensor.to(parameter.device) for moment, tensor in saved.items()}
