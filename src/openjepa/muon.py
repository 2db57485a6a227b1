"""Muon: momentum whose every matrix is made orthogonal, so that no direction of a layer is left behind.

Keller Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/, with the step's length as in "Muon is scalable"
(arXiv 2502.16982): the root mean square of an update is 0.2, about Adam's, so that one learning rate serves both. For
weight matrices of hidden layers; everything else is AdamW's (`openjepa.optim`). PyTorch has the same algorithm
(`torch.optim.Muon`), one matrix after the other and always in bfloat16, which processors without such instructions
compute a hundred times more slowly; here all matrices of a shape are one batch, in a type that is given.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial that drives singular values to about 1 (0.7 to 1.2) in five rounds, by its authors."""
_ROUNDS = 5
_ROOT_MEAN_SQUARE = 0.2  # of an update at a learning rate of 1, about Adam's


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, with decoupled weight decay.

    Args:
        params: Matrices, or groups of them.
        lr: Learning rate, as AdamW's.
        weight_decay: Taken off at every step, times the learning rate.
        momentum: Of the moving sum of gradients.
        ratio: How long an update is, over what is about AdamW's length at the same learning rate.
        dtype: What the orthogonal factor is computed in.

    Raises:
        ValueError: A parameter is no matrix.
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
                factors = orthogonal(torch.stack(wide).to(self.dtype))
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


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows, roughly: singular values of 0.7 to 1.2 (Newton-Schulz).

    Args:
        matrices: (K, m, n) with m ≤ n.

    Returns:
        The same shape and type; of zeros, zeros.
    """
    a, b, c = _COEFFICIENTS
    norm = torch.linalg.matrix_norm(matrices.float(), keepdim=True).clamp_min(1e-7)
    matrices = matrices / norm.to(matrices.dtype)  # so that no singular value is above 1
    for _ in range(_ROUNDS):
        gram = matrices @ matrices.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        matrices = torch.baddbmm(matrices, polynomial, matrices, beta=a)
    return matrices
