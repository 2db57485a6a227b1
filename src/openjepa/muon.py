"""Muon: momentum whose every matrix is made orthogonal, so that no direction of a layer is left behind.

Keller Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/, with the step's length as in "Muon is scalable"
(arXiv 2502.16982): the root mean square of an update is 0.2, about Adam's, so that one learning rate serves both. For
weight matrices of hidden layers; everything else is AdamW's (`openjepa.optim`). PyTorch has the same algorithm
(`torch.optim.Muon`), one matrix after the other and always in bfloat16, which processors without such instructions
compute a hundred times more slowly; here all matrices of a shape are one batch, and the rounds are over their small
Gram matrices, half of the work (docs/log.md).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (
    (8.305, -23.663, 16.876),
    (4.104, -2.932, 0.526),
    (3.901, -2.797, 0.512),
    (3.278, -2.369, 0.467),
    (2.296, -1.620, 0.390),
)
"""Of an odd polynomial a·x + b·x³ + c·x⁵ for each round. Each is the nearest to 1, by its largest error, on the
interval to which the rounds before have brought singular values that began in [0.001, 1], and 2 % beyond its upper
end, where it would else throw what rounding put there ever further off. After the last they lie in 0.8 to 1.14, and
smaller ones have grown a thousandfold: with three rounds for [0.02, 1] a masked autoencoder of one minute is four
points worse, so small directions matter. (Found by linear programming; the idea is that of Polar Express, arXiv
2505.16932.)"""
_RIDGE = 1e-6  # on a Gram matrix whose eigenvalues are at most 1: the square of 0.001
_ROOT_MEAN_SQUARE = 0.2  # of an update at a learning rate of 1, about Adam's


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, with decoupled weight decay.

    Args:
        params: Matrices, or groups of them.
        lr: Learning rate, as AdamW's.
        weight_decay: Taken off at every step, times the learning rate.
        momentum: Of the moving sum of gradients.
        ratio: How long an update is, over what is about AdamW's length at the same learning rate.
        dtype: What the products of whole matrices are computed in on CPUs, with sums in float32.

    Raises:
        ValueError: A parameter is not a matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        ratio: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.ratio = ratio
        self.dtype = dtype
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(
                        f"Muon is for matrices, got a parameter of shape {tuple(parameter.shape)}"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; ``closure``, if any, is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._momentum(parameter, group["momentum"])
                    alike[tuple(sorted(update.shape))].append((parameter, update))  # type: ignore[index]
            for (height, width), members in alike.items():
                # Wide, all of them: the products of the iteration are then of the smaller side.
                wide = [update if update.shape == (height, width) else update.T for _, update in members]
                factors = orthogonal(torch.stack(wide), dtype=self.dtype)
                length = self.ratio * group["lr"] * _ROOT_MEAN_SQUARE * math.sqrt(width)
                for (parameter, _), factor in zip(members, factors, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(factor if parameter.shape == (height, width) else factor.T, alpha=length)
        return loss

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """The average of gradients, this one counted once more (Nesterov), and its state moved on."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)


def orthogonal(matrices: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest matrices with orthonormal rows, roughly: singular values of 0.8 to 1.14.

    With X = U·S·Vᵀ the answer is U·Vᵀ. A round of Newton and Schulz replaces X by p(X·Xᵀ)·X, a product with a
    polynomial of the Gram matrix G = X·Xᵀ, which itself becomes p·G·p. So rounds need products of the smaller side
    alone; only the first Gram matrix and the last product are of the whole X. Before, G is divided by the fourth root
    of trace(G⁴), which no eigenvalue exceeds and which is much nearer to the largest than the trace is.

    Args:
        matrices: (K, m, n) float32 with m ≤ n.
        dtype: What the two products of the whole X are computed in on CPUs, with sums in float32. Those of Gram
            matrices stay in float32: bfloat16 would lose the small singular values, which are squared there.

    Returns:
        The same shape; of zeros, zeros. Singular values below some thousandths of that root stay below 0.8.
    """
    # First to a Frobenius norm of 1, so that fourth powers of small gradients do not vanish in float32.
    matrices = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp_min(1e-30)
    with _products_in(dtype):
        gram = matrices @ matrices.mT  # (K, m, m)
    square = gram @ gram
    scale = (
        torch.linalg.matrix_norm(square, keepdim=True).sqrt().clamp_min(1e-12)
    )  # 1 over √m at least, but for zeros
    gram, square = gram / scale, square / scale.square()
    # Rounding leaves eigenvalues of about −1e-7, which the rounds would make large: all are moved above 0.
    gram.diagonal(dim1=1, dim2=2).add_(_RIDGE)
    factor = None
    for turn, (a, b, c) in enumerate(_COEFFICIENTS):
        if turn:
            square = gram @ gram
        polynomial = b * gram + c * square
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        factor = polynomial if factor is None else polynomial @ factor
        if turn < len(_COEFFICIENTS) - 1:
            gram = polynomial @ gram @ polynomial
    assert factor is not None
    with _products_in(dtype):
        return (factor / scale.sqrt()) @ matrices


@contextmanager
def _products_in(dtype: torch.dtype) -> Iterator[None]:
    """Let products of float32 matrices on the CPU round their inputs to this type; sums stay float32."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made when torch is imported
    before = settings.fp32_precision
    if dtype == torch.bfloat16:
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
