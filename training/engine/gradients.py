"""Where DeepSpeed's optimizers differ: how large the accumulated gradient is, and how it is let go.

DeepSpeed looks for bad gradients itself, but not alike: its plain fp32 optimizer (stage 0) never, the others
once they have begun to step. Here the decision is ours, taken before, on every rank alike. For dropping what
was accumulated each optimizer's own way is used, the one it has for overflows.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import get_global_norm_of_tensors
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from training.engine.swapped import drop_kept_gradients


@dataclass(frozen=True, slots=True)
class GradientNorm:
    """The accumulated gradient's L2 norm, and how DeepSpeed is told of it."""

    value: float
    """Over all parameters and ranks, before clipping; infinite where a gradient is not finite."""

    owner: Any
    """Who would measure it again in order to clip."""

    answers: dict[str, Callable[..., Any]]
    """What takes the place of the owner's own measurements."""


def measure_gradient_norm(engine: Any) -> GradientNorm:
    """Measure the accumulated gradient between the last backward and the step. Collective.

    Args:
        engine: DeepSpeed's.
    """
    optimizer = engine.optimizer
    match optimizer:
        case DeepSpeedZeroOptimizer():
            if hasattr(optimizer, "_wait_for_offload_copies"):  # not in every 0.19
                optimizer._wait_for_offload_copies()
            norm = optimizer.scaled_global_norm()
            return GradientNorm(_sum_up([norm]), optimizer, {"scaled_global_norm": lambda *_, **__: norm})
        case DeepSpeedZeroOptimizer_Stage3():
            norms = optimizer._get_norm_groups()
            return GradientNorm(_sum_up(norms), optimizer, {"_get_norm_groups": lambda: norms})
        case BF16_Optimizer():
            gradients, _ = optimizer.get_grads_for_norm()
            return GradientNorm(
                _sum_up([get_global_norm_of_tensors(gradients, mpu=optimizer.mpu)]), optimizer, {}
            )
    parameters = [p for p in engine.module.parameters() if p.grad is not None]
    # Each in fp32: in bf16 the norm itself would have three digits.
    each = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in parameters]
    whole = torch.linalg.vector_norm(torch.stack(each)) if each else torch.zeros(())

    def clip() -> None:
        torch.nn.utils.clip_grads_with_norm_(parameters, engine.gradient_clipping(), whole)

    return GradientNorm(_sum_up([whole]), engine, {"clip_fp32_gradients": clip})


def step_knowing(engine: Any, norm: GradientNorm) -> None:
    """Step, clipping by the norm that was measured; DeepSpeed would measure it again. Collective."""
    with _replaced(norm.owner, norm.answers):
        engine.step()


def _sum_up(norms: Sequence[Any]) -> float:
    values = [float(norm) for norm in norms]
    # DeepSpeed says -1 where a norm is not finite.
    if any(value < 0 or not math.isfinite(value) for value in values):
        return math.inf
    return math.hypot(*values)


def drop_gradients(engine: Any) -> None:
    """End the step without an update: gradients are gone, weights, moments and step counts untouched.

    Collective.
    """
    optimizer = engine.optimizer

    def overflow(*_: object, **__: object) -> bool:
        optimizer.overflow = True
        return True

    match optimizer:
        case DeepSpeedZeroOptimizer():
            others: dict[str, Any] = {"check_grad_overflow": True, "check_overflow": overflow}
        case DeepSpeedZeroOptimizer_Stage3():
            others = {"_overflow_check_and_loss_scale_update": overflow}
        case _:
            # What follows the optimizer's step clears the gradients.
            others = {"step": _do_nothing}
    with _replaced(optimizer, others):
        engine.step()
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        # With the optimizer on the host, DeepSpeed 0.19.8 forgets this after an overflow: what is not finite
        # would be added to in the next step, and so spoil all that follow.
        for sums in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
            sums.update(dict.fromkeys(sums))
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer._overflow_clean_up(1.0)  # 0.19.8 has done so; where the step asks for the answer it has not
        drop_kept_gradients(optimizer)
    if "overflow" in vars(optimizer):
        optimizer.overflow = False  # it is part of what DeepSpeed saves, and there was none


def _do_nothing(*_: object) -> None:
    pass


@contextmanager
def _replaced(target: Any, others: Mapping[str, Any]) -> Iterator[None]:
    """Let some attributes of one object be others for a while."""
    own = {name: vars(target)[name] for name in others if name in vars(target)}
    vars(target).update(others)
    try:
        yield
    finally:
        for name in others:
            del vars(target)[name]
        vars(target).update(own)
