"""Linear probes of frozen features, as in the paper: the best of four heads, trained by SGD side by side.

Which of the four, and its learning rate, is chosen on a tenth of the *training* images; test images only tell how good
the chosen ones are.

Shapes: N training images, T test images, L layers, D width, K classes, H learning rates.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.evals.features import Result, accuracy, by_layer
from openjepa.evals.heads import Head, folded
from openjepa.evals.splits import validation_split

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Of each head. On CIFAR-10 raw pixels want the smallest and a trained ViT's features 3 to 10."""

_MOMENTUM = 0.9
_CHUNK = 4096  # rows of a full pass at a time, to bound the memory of the logits


@torch.no_grad()
def linear(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 30,
    min_steps: int = 500,
    batch_size: int = 1024,
    weight_decay: float = 5e-4,
    seed: int = 0,
    num_views: int = 1,
) -> Result:
    """The best of four linear heads: on the last layer or on all given layers, each with BatchNorm or without.

    After the paper's linear transfer (I-JEPA, appendix A.2; VISSL): SGD with Nesterov momentum 0.9, weight decay 5e-4,
    28 epochs. Ours decays by a cosine instead of three steps. The head and the learning rate with the best accuracy on
    the held-out tenth of the training images are those that are tested.

    Args:
        train_x: Training features (N, D), or of the last layers (N, L, D), the last one last.
        train_y: Training labels (N,) int64, from 0.
        test_x: Test features, alike.
        test_y: Test labels (T,); used for accuracies alone.
        learning_rates: Tried for each head.
        epochs: Passes over the images that are fitted.
        min_steps: On small data as many more passes as make up this many steps.
        batch_size: Images a step.
        weight_decay: L2 penalty of the weights and biases.
        seed: For the validation split and the order of images.
        num_views: How often each training image is there, see `validation_split`.

    Returns:
        Accuracy, predictions (T,) and settings: which head was chosen, its learning rate, and under ``heads`` what each
        head reached on the validation and on the test images at its own best learning rate.

    Raises:
        DataError: No class has two images.
    """
    fit, validation = validation_split(train_y, seed=seed, num_views=num_views)
    batch_size = min(batch_size, len(fit))
    epochs = max(epochs, math.ceil(min_steps / (len(fit) // batch_size)))
    train_x, test_x = by_layer(train_x), by_layer(test_x)
    heads: dict[str, dict[str, float]] = {}
    fitted: dict[str, Head] = {}
    for num_layers in sorted({1, train_x.shape[1]}):
        x = train_x[:, -num_layers:].flatten(1)
        for norm in ("BatchNorm", "no norm"):
            trained = _train_heads(
                x, train_y, rows=fit, batchnorm=norm == "BatchNorm", learning_rates=learning_rates, epochs=epochs,
                batch_size=batch_size, weight_decay=weight_decay, seed=seed,
            )  # fmt: skip
            scores = trained.accuracies(x, train_y, validation)
            best = int(scores.argmax())
            name = f"{'last layer' if num_layers == 1 else f'last {num_layers} layers'}, {norm}"
            fitted[name] = trained.head(best, width=x.shape[1], num_layers=num_layers)
            heads[name] = {"lr": learning_rates[best], "validation_top1": scores[best].item()}
    chosen = max(heads, key=lambda name: heads[name]["validation_top1"])  # of equals the first
    answers = {name: head(test_x).argmax(dim=1) for name, head in fitted.items()}
    for name, answer in answers.items():
        heads[name]["top1"] = accuracy(answer, test_y)
    settings = {
        "head": chosen,
        "lr": heads[chosen]["lr"],
        "epochs": epochs,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "validation_top1": heads[chosen]["validation_top1"],
        "seed": seed,
        "heads": heads,
    }
    return Result(heads[chosen]["top1"], answers[chosen], settings, fitted[chosen])


class _Heads(NamedTuple):
    """A linear head for each learning rate, on features that are normalised alike."""

    weight: Tensor
    """(H, K, D + 1), the bias last."""
    shift: Tensor
    """(D,) or (), taken from features before ..."""
    scale: Tensor
    """... they are divided by this."""

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, H, K)."""
        scores = F.linear(_with_one((features - self.shift) / self.scale), self.weight.flatten(0, 1))
        return scores.view(-1, *self.weight.shape[:2])

    def accuracies(self, features: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Of each head (H,) on these rows."""
        hits = [self.logits(features[part]).argmax(2) == labels[part, None] for part in rows.split(_CHUNK)]
        return torch.cat(hits).double().mean(dim=0)

    def head(self, place: int, *, width: int, num_layers: int) -> Head:
        """One of them for use."""
        weight, bias = self.weight[place].split([width, 1], dim=1)
        shift = self.shift.expand(width)
        return folded(weight, bias[:, 0], shift=shift, scale=self.scale, num_layers=num_layers)


def _with_one(features: Tensor) -> Tensor:
    """A column of ones for the bias: (N, D) -> (N, D + 1)."""
    return F.pad(features, (0, 1), value=1.0)


def _train_heads(
    x: Tensor,
    y: Tensor,
    *,
    rows: Tensor,
    batchnorm: bool,
    learning_rates: Sequence[float],
    epochs: int,
    batch_size: int,
    weight_decay: float,
    seed: int,
) -> _Heads:
    """Trains a head for each learning rate on these rows of features (N, D).

    They share the normalisation, which depends on the features alone, and the matrix products. Gradients are written
    out, which is short, and several times faster than autograd with an optimiser for each head.
    """
    num_heads, num_classes = len(learning_rates), int(y.max()) + 1
    # The features are frozen, so their statistics are averaged over all steps (momentum=None). A small eps:
    # encoders differ in scale, and the probe should not see it.
    norm = nn.BatchNorm1d(x.shape[1], eps=1e-8, momentum=None, affine=False).to(x.device)
    # Without BatchNorm one number for all of them does the same.
    scale = x[rows].square_().mean().sqrt().clamp_min(1e-30)  # in place: the rows are a copy
    # Rows are the classes of one head after another; the last column is the bias. Zeros, for the problem is
    # convex, and drawing numbers would change those of a run in progress.
    weight = x.new_zeros(num_heads * num_classes, x.shape[1] + 1)
    velocity = torch.zeros_like(weight)
    rates = x.new_tensor(learning_rates).repeat_interleave(num_classes)[:, None]  # (H·K, 1)
    steps_per_epoch = len(rows) // batch_size
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
        for step, batch in enumerate(order.split(batch_size)[:steps_per_epoch]):
            z = _with_one(norm(x[batch]) if batchnorm else x[batch] / scale)
            scores = F.linear(z, weight).view(-1, num_heads, num_classes)
            # The gradient of the cross-entropy by the scores is softmax - one-hot; each head has its own.
            error = scores.softmax(dim=2) - F.one_hot(y[batch], num_classes)[:, None]
            gradient = error.flatten(1).T @ z / batch_size + weight_decay * weight  # (H·K, D + 1)
            velocity.mul_(_MOMENTUM).add_(gradient)
            decay = (1 + math.cos(math.pi * (epoch + step / steps_per_epoch) / epochs)) / 2
            weight -= decay * rates * (gradient + _MOMENTUM * velocity)  # Nesterov
    by_head = weight.view(num_heads, num_classes, -1)
    if not batchnorm:
        return _Heads(by_head, x.new_zeros(()), scale)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return _Heads(by_head, norm.running_mean, (norm.running_var + norm.eps).sqrt())
