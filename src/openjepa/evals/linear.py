"""Linear classification of frozen features: BatchNorm + linear trained by SGD, and logistic regression.

Both choose their one hyper-parameter on a tenth of the *training* images. Test features are touched once, at
the end, by the head that was chosen; test labels only count what it got right.

Shapes: N training images, T test images, D width, K classes, H heads.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.errors import DataError
from openjepa.evals.features import Result, accuracy
from openjepa.rng import uniform

Solver = Literal["sklearn", "torch"]

LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Of the parallel heads, at a batch of 1024."""

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of C, scikit-learn's inverse strength of the L2 penalty, for the sum of the losses of all images."""

_SCIKIT_MAX_ELEMENTS = 200_000  # N * D up to which scikit-learn's float64 solver is quick
_MAX_ITERATIONS = 1000
_CHUNK = 8192  # rows of a full-batch pass at a time: bounds the memory of the logits


def validation_split(labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Splits the training images in two: rows to fit on (about 90 %) and rows to choose settings on.

    Within each class the images are ranked at random, and the 2nd, 12th, 22nd … are held out. So the split is
    stratified, no class ever loses its only image, and every class with two has one to validate on.

    Args:
        labels: (N,) int64.
        seed: The split is a pure function of the labels and the seed.

    Returns:
        Two arrays of row numbers, int64, together a permutation of range(N).

    Raises:
        DataError: No class has two images.
    """
    classes = labels.cpu().numpy()
    num_images = len(classes)
    order = np.lexsort((uniform(seed, "validation", np.arange(num_images), num=1)[:, 0], classes))
    rank = np.arange(num_images) - np.searchsorted(classes[order], classes[order])
    held_out = rank % 10 == 1
    if not held_out.any():
        raise DataError(
            f"the training data have {num_images} labelled images of {len(np.unique(classes))} classes; a linear "
            "probe needs at least two images of some class, one to fit and one to validate on: add images"
        )
    fit, validation = torch.from_numpy(order[~held_out]), torch.from_numpy(order[held_out])
    return fit.to(labels.device), validation.to(labels.device)


def batchnorm_linear(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 30,
    min_steps: int = 500,
    batch_size: int = 1024,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    seed: int = 0,
) -> Result:
    """BatchNorm without affine parameters, then a linear layer: one head for each learning rate, side by side.

    After VISSL's linear transfer (I-JEPA, appendix A.2): SGD with Nesterov momentum 0.9, weight decay 5e-4, about
    28 epochs. Ours decays by a cosine instead of three steps. The heads share the BatchNorm, which depends on
    the features alone, and one matrix product; their gradients do not mix. The head with the best accuracy on
    the held-out tenth of the training images is the one reported.

    Args:
        train_x: Training features (N, D).
        train_y: Training labels (N,) int64, from 0.
        test_x: Test features (T, D).
        test_y: Test labels (T,); used for the accuracy alone.
        learning_rates: One head each.
        epochs: Passes over the images that are fitted on.
        min_steps: Small data sets make more passes, up to this many steps.
        batch_size: Images a step.
        momentum: Nesterov momentum.
        weight_decay: Of the weights and biases.
        seed: For the validation split and the order of images.

    Returns:
        Accuracy, predictions (T,) and settings, among them the learning rate that was chosen.

    Raises:
        DataError: No class has two images.
    """
    fit, validation = validation_split(train_y, seed=seed)
    num_classes, num_heads = int(train_y.max()) + 1, len(learning_rates)
    batch_size = min(batch_size, len(fit))
    steps_per_epoch = len(fit) // batch_size
    num_steps = max(epochs * steps_per_epoch, min_steps)

    # momentum=None averages the statistics over all steps: the features are frozen, so nothing drifts.
    # A small eps: encoders differ in scale, and the probe should not see it.
    norm = nn.BatchNorm1d(train_x.shape[1], eps=1e-8, momentum=None, affine=False).to(train_x.device)
    # Zeros: the problem is convex, and the run's random numbers stay as they are.
    weights = [train_x.new_zeros(num_classes, train_x.shape[1]).requires_grad_() for _ in learning_rates]
    biases = [train_x.new_zeros(num_classes).requires_grad_() for _ in learning_rates]
    optimizer = torch.optim.SGD(
        [{"params": pair, "lr": rate} for *pair, rate in zip(weights, biases, learning_rates, strict=True)],
        momentum=momentum,
        nesterov=True,
        weight_decay=weight_decay,
    )

    def logits(features: Tensor) -> Tensor:
        """(b, D) -> (b, H, K)."""
        return F.linear(norm(features), torch.cat(weights), torch.cat(biases)).unflatten(1, (num_heads, -1))

    generator = torch.Generator().manual_seed(seed)
    order = fit
    for step in range(num_steps):
        if step % steps_per_epoch == 0:
            order = fit[torch.randperm(len(fit), generator=generator).to(fit.device)]
        for group, rate in zip(optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * step / num_steps)) / 2
        start = step % steps_per_epoch * batch_size
        rows = order[start : start + batch_size]
        scores = logits(train_x[rows])
        labels = train_y[rows, None].expand(-1, num_heads)
        # Mean over images, *sum* over heads: each head has the gradient that it would have alone.
        loss = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum") / batch_size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    norm.eval()
    with torch.no_grad():
        hits = [logits(train_x[rows]).argmax(2) == train_y[rows, None] for rows in validation.split(_CHUNK)]
        validation_top1 = torch.cat(hits).double().mean(dim=0)  # (H,)
        best = int(validation_top1.argmax())
        predictions = torch.cat([logits(rows)[:, best].argmax(1) for rows in test_x.split(_CHUNK)])
    settings = {
        "lr": learning_rates[best],
        "epochs": num_steps / steps_per_epoch,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "validation_top1": validation_top1[best].item(),
        "seed": seed,
    }
    return Result(accuracy(predictions, test_y), predictions, settings)


def logistic(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    strengths: Sequence[float] = STRENGTHS,
    solver: Solver | None = None,
    seed: int = 0,
) -> Result:
    """Multinomial logistic regression with an L2 penalty on standardised features, solved to its optimum.

    Minimises |W|² / 2 + C · Σ cross-entropy, the bias not penalised: scikit-learn's ``LogisticRegression``. C is
    chosen on the held-out tenth of the training images; then all of them are fitted with it.

    Args:
        train_x: Training features (N, D).
        train_y: Training labels (N,) int64, every class from 0 to K - 1 present.
        test_x: Test features (T, D).
        test_y: Test labels (T,); used for the accuracy alone.
        strengths: Values of C to choose from.
        solver: ``sklearn``, ``torch``, or None: scikit-learn on small data. Same optimum.
        seed: For the validation split.

    Returns:
        Accuracy, predictions (T,) and settings, among them the C that was chosen.

    Raises:
        DataError: No class has two images.
    """
    fit, validation = validation_split(train_y, seed=seed)
    if solver is None:
        small = train_x.device.type == "cpu" and train_x.numel() <= _SCIKIT_MAX_ELEMENTS
        solver = "sklearn" if small else "torch"
    solve = {"sklearn": _solve_sklearn, "torch": _solve_lbfgs}[solver]

    # Fitted rows first, so that both fits read slices of one copy. Mean, scale and axes are of all training
    # features: they see no labels. A constant feature is divided by a little something instead of by zero.
    order = torch.cat([fit, validation])
    x, y = train_x[order], train_y[order]
    std, mean = torch.std_mean(x, dim=0, correction=0)
    std = std.clamp_min(max(1e-6 * std.max().item(), 1e-30))
    x.sub_(mean).div_(std)
    # Principal axes. A rotation changes neither |W| nor the optimum, and gives ``_solve_lbfgs`` a diagonal scale.
    variances, axes = torch.linalg.eigh(x.T @ x / len(x))  # (D,), (D, D)
    x = x @ axes

    best, best_top1, weight, bias = strengths[0], -1.0, None, None
    for strength in sorted(strengths):
        weight, bias = solve(x[: len(fit)], y[: len(fit)], strength=strength, variances=variances)
        top1 = accuracy((x[len(fit) :] @ weight + bias).argmax(dim=1), y[len(fit) :])
        if top1 > best_top1:
            best, best_top1 = strength, top1
    weight, bias = solve(x, y, strength=best, variances=variances)
    predictions = ((test_x - mean) / std @ (axes @ weight) + bias).argmax(dim=1)
    settings = {"C": best, "solver": solver, "validation_top1": best_top1, "seed": seed}
    return Result(accuracy(predictions, test_y), predictions, settings)


def _solve_sklearn(x: Tensor, y: Tensor, *, strength: float, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (D, K) and biases (K,) by scikit-learn, in float64."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, tol=1e-6, max_iter=10_000).fit(x.double().numpy(), y.numpy())
    weight, bias = torch.from_numpy(model.coef_.T).to(x), torch.from_numpy(model.intercept_).to(x)
    if len(model.classes_) > 2:
        return weight, bias
    # Two classes share one weight vector: the score of the second over the first.
    return torch.cat([-weight / 2, weight / 2], dim=1), torch.cat([-bias / 2, bias / 2])


def _solve_lbfgs(x: Tensor, y: Tensor, *, strength: float, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (D, K) and biases (K,) by full-batch L-BFGS, in float32, preconditioned.

    The mean loss over N images has the Hessian S / K + decay · I at W = 0 (up to classes), where S is the covariance
    of the features and decay = 1 / (C · N). On the principal axes S is diagonal, so W = V / sqrt(S / K + decay)
    makes it the identity, whatever C is: a few dozen passes instead of many hundreds on correlated features.
    """
    num_images, num_classes = len(y), int(y.max()) + 1
    # scikit-learn's two classes share one vector w = w1 - w0, so |w|² = 2 (|w0|² + |w1|²) at w0 = -w1.
    decay = (2 if num_classes == 2 else 1) / (strength * num_images)
    scale = (variances.clamp_min(0) / num_classes + decay).rsqrt()[:, None]  # (D, 1)
    v = x.new_zeros(x.shape[1], num_classes).requires_grad_()
    bias = x.new_zeros(num_classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [v, bias],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> float:
        optimizer.zero_grad()
        penalty = decay / 2 * (v * scale).square().sum()
        penalty.backward()
        total = penalty.item()
        for features, labels in zip(x.split(_CHUNK), y.split(_CHUNK), strict=True):
            loss = F.cross_entropy(features @ (v * scale) + bias, labels, reduction="sum") / num_images
            loss.backward()
            total += loss.item()
        return total

    optimizer.step(objective)
    return (v * scale).detach(), bias.detach()
