"""Lion (arXiv:2302.06675): steps along the sign of a mean of gradients."""

from collections.abc import Iterable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """Lion with decoupled weight decay, elementwise, so that ZeRO may cut the parameters anywhere.

    torch has none, DeepSpeed's and bitsandbytes' need a compiler or a GPU.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        """Keep one mean for each parameter; ``betas``: weight of the mean in the step, and its decay."""
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient (algorithm 2 of the paper)."""
        for group in self.param_groups:
            in_step, decay = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                mean, gradient = state["exp_avg"], parameter.grad.to(parameter.dtype)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(torch.lerp(gradient, mean, in_step).sign_(), alpha=-group["lr"])
                mean.lerp_(gradient, 1 - decay)
