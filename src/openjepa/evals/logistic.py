"""Logistic regression on frozen features, solved to its optimum by scikit-learn or by torch.

Its one setting is chosen on a tenth of the *training* images. Test features are touched once, at the end; test labels
only count what was right.

Shapes: N training images, T test images, D width, K classes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from openjepa.evals.features import Result, accuracy
from openjepa.evals.heads import folded
from openjepa.evals.splits import validation_split

Solver = Literal["sklearn", "torch"]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Values of C, the weight of the summed losses against the L2 penalty, as scikit-learn defines it. A wide
range: features whose directions differ a lot in variance, as those of a random ViT, want a very weak penalty."""

_SCIKIT_MAX_ELEMENTS = 200_000  # N * D up to which scikit-learn's solver is quick
_MAX_ITERATIONS = 1000  # of L-BFGS; a few dozen are used
_CHUNK = 4096  # rows of a full pass at a time, to bound the memory of the logits


def logistic(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    strengths: Sequence[float] = STRENGTHS,
    solver: Solver | None = None,
    seed: int = 0,
    num_views: int = 1,
) -> Result:
    """Logistic regression with an L2 penalty on standardised features, solved to its optimum.

    Minimises |W|² / 2 + C · Σ cross-entropy, the bias not penalised: scikit-learn's `LogisticRegression`. C
    is chosen on the held-out tenth of the training images; then all of them are fitted with it.

    Args:
        train_x: Training features (N, D).
        train_y: Training labels (N,) int64, every class from 0 to K - 1 present.
        test_x: Test features (T, D).
        test_y: Test labels (T,); used for the accuracy alone.
        strengths: Values of C to choose from.
        solver: `sklearn`, `torch`, or None: scikit-learn on small data. Both find the same optimum.
        seed: For the validation split.
        num_views: How often each training image is there, see `validation_split`.

    Returns:
        Accuracy, predictions (T,) and settings, among them the C that was chosen.

    Raises:
        DataError: No class has two images.
    """
    fit, validation = validation_split(train_y, seed=seed, num_views=num_views)
    if solver is None:
        small = train_x.device.type == "cpu" and train_x.numel() <= _SCIKIT_MAX_ELEMENTS
        solver = "sklearn" if small else "torch"
    solve = {"sklearn": _solve_sklearn, "torch": _solve_lbfgs}[solver]

    # Fitted rows first, so that both fits take slices of one copy. Mean, scale and axes are those of all
    # training features: they see no labels. A constant feature is divided by a little, not by zero.
    order = torch.cat([fit, validation])
    x, y = train_x[order], train_y[order]
    std, mean = torch.std_mean(x, dim=0, correction=0)
    std = std.clamp_min(max(1e-6 * std.max().item(), 1e-30))
    x.sub_(mean).div_(std)
    variances, axes = _principal_axes(x)
    x = x @ axes

    scores: dict[float, float] = {}
    best = min(strengths)
    for strength in sorted(strengths):
        weight, bias = solve(x[: len(fit)], y[: len(fit)], strength=strength, variances=variances)
        scores[strength] = accuracy(F.linear(x[len(fit) :], weight, bias).argmax(dim=1), y[len(fit) :])
        best = max(scores, key=scores.__getitem__)  # of equals the strongest penalty
        if list(scores).index(best) < len(scores) - 2:
            break  # the last two were no better, and weaker penalties take ever longer to solve

    weight, bias = solve(x, y, strength=best, variances=variances)
    head = folded(weight @ axes.T, bias, shift=mean, scale=std, num_layers=1)
    predictions = F.linear((test_x - mean) / std @ axes, weight, bias).argmax(dim=1)
    settings = {"C": best, "solver": solver, "validation_top1": scores[best], "seed": seed}
    return Result(accuracy(predictions, test_y), predictions, settings, head)


def _principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (d,) and directions (D, d), d = min(N, D), of centred features (N, D).

    Logistic regression may be solved on these axes: a rotation leaves |W| as it is, and directions in
    which no image differs get no weight.
    """
    num_images, width = x.shape
    if num_images >= width:
        variances, axes = torch.linalg.eigh(x.T @ x / num_images)
        return variances.clamp_min(0), axes
    _, singular, directions = torch.linalg.svd(x, full_matrices=False)
    return singular.square() / num_images, directions.T


def _solve_sklearn(x: Tensor, y: Tensor, *, strength: float, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (K, D) and biases (K,) by scikit-learn, in float64; `variances` are not needed."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, tol=1e-6, max_iter=10_000).fit(x.double().numpy(), y.numpy())
    weight, bias = (torch.from_numpy(found).to(x) for found in (model.coef_, model.intercept_))
    if len(model.classes_) > 2:
        return weight, bias
    # For two classes it finds one vector, the score of the second over the first.
    return torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])


def _solve_lbfgs(x: Tensor, y: Tensor, *, strength: float, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (K, D) and biases (K,) by full-batch L-BFGS on principal axes, preconditioned.

    At W = 0 the mean loss of N images with its penalty has the Hessian S / K + decay (but for what classes
    share), with S the covariance of the features and decay = 1 / (C · N). On principal axes S is diagonal,
    so W = V / sqrt(S / K + decay) makes it the identity, whatever C is: a few dozen passes, where
    correlated features took over a thousand.
    """
    num_images, num_classes = len(y), int(y.max()) + 1
    # For two classes scikit-learn penalises w = w1 - w0, and |w|² = 2 (|w0|² + |w1|²) at the optimum, w0 = -w1.
    decay = (2 if num_classes == 2 else 1) / (strength * num_images)
    scale = (variances / num_classes + decay).rsqrt()  # (D,)
    v = x.new_zeros(num_classes, x.shape[1]).requires_grad_()
    bias = x.new_zeros(num_classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [v, bias],
        max_iter=_MAX_ITERATIONS,
        max_eval=2 * _MAX_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-11,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> float:
        optimizer.zero_grad()
        penalty = decay / 2 * (v * scale).square().sum()
        penalty.backward()
        total = penalty.item()
        for features, labels in zip(x.split(_CHUNK), y.split(_CHUNK), strict=True):
            # (K, D) weights: both products then run along rows of x, several times faster than (D, K).
            # Losses in float64, or rounding would end the line search short of the optimum.
            scores = F.linear(features, v * scale, bias).double()
            loss = F.cross_entropy(scores, labels, reduction="sum") / num_images
            loss.backward()
            total += loss.item()
        return total

    optimizer.step(objective)
    return (v * scale).detach(), bias.detach()
