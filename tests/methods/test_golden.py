"""The method against numbers from the authors' code: outputs, loss, gradients, and weights after four steps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor

from openjepa.formats.reference import read_reference
from openjepa.hub import load
from openjepa.masks import Masks
from openjepa.methods.ijepa import IJEPA
from openjepa.models.transformer import set_attention_path
from openjepa.optim import make_optimizers
from openjepa.train import Hyperparameters, Objective, Part, train_step

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["tiny-32-p4", "small-56-p8"]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    name = request.param
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    return {"name": name, "facts": facts, "tensors": load_file(GOLDEN / f"{name}.safetensors")}


@pytest.fixture(params=["matmul", "fused"])
def model(request: pytest.FixtureRequest, case: dict[str, Any]) -> IJEPA:
    model = load(GOLDEN / f"{case['name']}-before.pth.tar", num_heads=case["facts"]["num_heads"])
    set_attention_path(model, request.param)
    return model


def masks_of(case: dict[str, Any], step: int) -> Masks:
    tensors, facts = case["tensors"], case["facts"]

    def indices(kind: str, count: int) -> Tensor:
        return torch.stack([tensors[f"step{step}.{kind}_index.{number}"] for number in range(count)], dim=1)

    return Masks(
        indices("context", facts["num_context_blocks"]), indices("target", facts["num_target_blocks"])
    )


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative in norm."""
    return float((ours.detach() - theirs).norm() / theirs.norm())


def test_outputs_and_losses(case: dict[str, Any], model: IJEPA) -> None:
    tensors = case["tensors"]
    images, masks = tensors["step0.images"], masks_of(case, 0)

    out = model(images, masks)

    assert distance(model.target_encoder(images), tensors["step0.target_encoder_out"]) < 1e-5
    assert distance(model.context_encoder(images, masks.context[:, 0]), tensors["step0.context_out"]) < 1e-5
    # theirs: target block by target block, then context by context
    assert distance(out.predictions.permute(2, 1, 0, 3, 4).flatten(0, 2), tensors["step0.predictions"]) < 1e-5
    assert distance(out.targets.transpose(0, 1).flatten(0, 1), tensors["step0.targets"]) < 1e-5
    assert out.loss.item() == pytest.approx(case["facts"]["steps"][0]["smooth_l1"], rel=1e-5)
    model.loss = "mse"
    assert model(images, masks).loss.item() == pytest.approx(case["facts"]["steps"][0]["mse"], rel=1e-5)


def test_gradients(case: dict[str, Any], model: IJEPA) -> None:
    model(case["tensors"]["step0.images"], masks_of(case, 0)).loss.backward()

    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    golden = {name for name in case["tensors"] if name.startswith("step0.grad.")}
    assert len(trained) == len(golden)
    for name, parameter in trained.items():
        assert parameter.grad is not None
        theirs = case["tensors"]["step0.grad." + name.removeprefix("context_encoder.")]
        assert distance(parameter.grad, theirs) < 1e-5, name
    assert all(parameter.grad is None for parameter in model.target_encoder.parameters())


def test_weights_after_four_steps(case: dict[str, Any], model: IJEPA) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    objective, *optimizers = fabric.setup(Objective(model), *make_optimizers(model))
    for step, facts in enumerate(case["facts"]["steps"]):
        hyper = Hyperparameters(facts["lr"], facts["weight_decay"], facts["ema_momentum"])
        part = Part(case["tensors"][f"step{step}.images"], masks_of(case, step))
        loss = train_step(fabric, objective, optimizers, [part], hyper=hyper)
        assert loss == pytest.approx(facts["smooth_l1"], rel=1e-4)

    path = GOLDEN / f"{case['name']}-after.pth.tar"
    _, after = read_reference(path, num_heads=case["facts"]["num_heads"])
    ours = model.state_dict()
    assert ours.keys() == after.keys()
    for name, theirs in after.items():
        assert distance(ours[name], theirs) < 2e-4, name
