"""Muon (Jordan 2024, arXiv:2502.16982): matrices step along an orthogonal matrix near their mean gradient."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MATRICES = "matrices"
"""Key of a parameter group: whether Muon steps it; AdamW steps the others."""

Orthogonalize = Callable[[Tensor, Tensor], Tensor]
"""Takes a parameter as the optimizer knows it, and what it would step along; gives the step, of its shape."""

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_SMALLEST_NORM = 1e-7


class Muon(torch.optim.AdamW):
    """Muon for groups with ``matrices``, fused AdamW for the others, at one learning rate for both.

    A step of Muon is scaled to the size that AdamW's would have (arXiv:2502.16982, equation 4). Its only
    state is the mean of gradients, one number per element, cut as the parameter is: a cut parameter has to be
    put together to be stepped, which whoever cut it tells how (``orthogonalize``).
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """Keep one mean for each matrix; ``betas`` and ``eps`` are AdamW's."""
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        self._momentum = momentum
        self.orthogonalize: Orthogonalize = lambda _, direction: orthogonalize(direction)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient. Collective where matrices are cut."""
        groups = self.param_groups
        for group in groups:
            if group[MATRICES]:
                self._step_matrices(group)
        self.param_groups = [group for group in groups if not group[MATRICES]]
        try:
            super().step(closure)
        finally:
            self.param_groups = groups

    def _step_matrices(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            mean, gradient = state["momentum_buffer"], parameter.grad.to(parameter.dtype)
            mean.lerp_(gradient, 1 - self._momentum)
            # Nesterov's: one step ahead of the mean.
            step = self.orthogonalize(parameter, torch.lerp(gradient, mean, self._momentum))
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(step, alpha=-group["lr"])


def orthogonalize(direction: Tensor) -> Tensor:
    """Bring the singular values of matrices [..., M, N] near 1, and scale each to AdamW's size.

    A quintic Newton-Schulz iteration, which leaves singular values between about 0.7 and 1.2. In fp32: in
    bf16, as others do it, a step would depend on how the batch is cut.

    Returns:
        0.2 x sqrt(max(M, N)) x the matrices: their elements have the root mean square of an AdamW step.
    """
    a, b, c = _COEFFICIENTS
    is_tall = direction.shape[-2] > direction.shape[-1]
    matrix = (direction.mT if is_tall else direction).float()
    matrix = matrix / matrix.norm(dim=(-2, -1), keepdim=True).clamp(min=_SMALLEST_NORM)
    for _ in range(_ITERATIONS):
        gram = matrix @ matrix.mT
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    size = 0.2 * math.sqrt(max(direction.shape[-2:]))
    scaled: Tensor = (matrix.mT if is_tall else matrix) * size
    return scaled.to(direction.dtype)
