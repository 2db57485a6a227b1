"""A step that cannot be taken changes nothing."""

import copy
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from openjepa.errors import NonFiniteError
from openjepa.masks import make_masks
from openjepa.methods import Output, Targets
from openjepa.methods.ijepa import IJEPA, build_ijepa
from openjepa.models.architecture import Architecture
from openjepa.optim import make_optimizers
from openjepa.train import Hyperparameters, Objective, Part, train_step

SHAPE = Architecture((16, 16), (4, 4), 3, 16, 2, 2, 2.0, 8, 1, 2)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_that_is_not_finite_updates_nothing(
    monkeypatch: pytest.MonkeyPatch, clip_norm: float | None
) -> None:
    """√x at 0: the loss is 0, and its gradient infinite."""
    model = build_ijepa(SHAPE)
    before = copy.deepcopy(model.state_dict())
    forward = IJEPA.forward

    def flat(self: IJEPA, images: Tensor, masks: Any, asked: Targets | None = None) -> Output:
        out = forward(self, images, masks, asked)
        object.__setattr__(out, "loss", (out.loss * 0).sqrt())
        return out

    monkeypatch.setattr(IJEPA, "forward", flat)
    optimizers = make_optimizers(model, name="muon")
    fabric = Fabric(accelerator="cpu", devices=1)
    objective, *wrapped = fabric.setup(Objective(model), *optimizers)
    masks = make_masks("random", grid=(4, 4), target_fraction=0.75)(
        seed=0, step=0, epochs=[0, 0], samples=[0, 1]
    )
    part = Part(torch.rand(2, 3, 16, 16), masks)
    hyper = Hyperparameters(lr=1e-3, weight_decay=0.0, ema_momentum=0.5)
    with pytest.raises(NonFiniteError, match="the loss is 0, but its gradient"):
        train_step(fabric, objective, wrapped, [part], hyper=hyper, clip_norm=clip_norm)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
