"""The protocols on features of a fixed random ViT, which are as correlated and uneven as real ones, against others."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.data.scenes import source as scenes
from openjepa.data.scenes.render import render
from openjepa.evals.features import accuracy, extract, pooled
from openjepa.evals.knn import knn
from openjepa.evals.linear import linear
from openjepa.evals.logistic import logistic
from openjepa.evals.splits import validation_split
from openjepa.models.vit import VisionTransformer

Features = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def features() -> Features:
    """Of 1,500 scenes to fit on and 1,500 to test, and the colour of the largest object."""
    torch.manual_seed(0)
    encoder = VisionTransformer((64, 64), (8, 8), embed_dim=96, depth=3, num_heads=3, mlp_ratio=4.0).eval()
    found: list[Tensor] = []
    for split in ("train", "test"):
        rendered = render(scenes.SEEDS[split], np.arange(1500))
        batches = torch.from_numpy(rendered.images).permute(0, 3, 1, 2).split(250)
        x = extract(
            {"random": pooled(encoder)}, batches=batches, num_images=1500, mean=(0.5,) * 3, std=(0.25,) * 3
        )["random"]
        found += [x, torch.from_numpy(rendered.colour).long()]
    return found[0], found[1], found[2], found[3]


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_logistic_regression_is_that_of_scikit_learn(features: Features, strength: float) -> None:
    train_x, train_y, test_x, _test_y = features
    found = logistic(*features, strengths=(strength,), solver="torch")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-8, max_iter=100_000))
    pipeline.fit(train_x.double().numpy(), train_y.numpy())
    expected = pipeline.predict(test_x.double().numpy())
    assert np.mean(found.predictions.numpy() == expected) >= 0.999
    assert found.top1 > 0.3  # of eight colours


def test_knn_is_that_of_scikit_learn_but_for_ties(features: Features) -> None:
    train_x, train_y, test_x, _test_y = features
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    reference.fit(train_x.double().numpy(), train_y.numpy())
    chances = np.sort(reference.predict_proba(test_x.double().numpy()), axis=1)
    tied = chances[:, -1] - chances[:, -2] < 1e-5  # in float32 these votes are equal
    assert tied.mean() < 0.01
    expected = reference.predict(test_x.double().numpy())
    assert (knn(*features).predictions.numpy() == expected)[~tied].all()


def test_the_batchnorm_head_is_that_of_torch_modules(features: Features) -> None:
    """BatchNorm and a linear layer by autograd, another order of images: within a point and a half of accuracy."""
    train_x, train_y, test_x, test_y = features
    found = linear(*features, learning_rates=(1.0,)).settings
    fit, _ = validation_split(train_y, seed=0)
    x, y = train_x[fit], train_y[fit]
    torch.manual_seed(1)
    head = nn.Sequential(nn.BatchNorm1d(x.shape[1], eps=1e-8, affine=False), nn.Linear(x.shape[1], 8))
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = found["epochs"] * (len(x) // found["batch_size"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randperm(len(x))[: found["batch_size"]]
        optimizer.zero_grad()
        F.cross_entropy(head(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        expected = accuracy(head.eval()(test_x).argmax(dim=1), test_y)
    assert found["heads"]["last layer, BatchNorm"]["top1"] == pytest.approx(expected, abs=0.015)
