"""run.precision=fp16: the loss is scaled, so that small gradients do not vanish (Micikevicius et al. 2018).

float16 knows nothing below 6e-8, where many gradients are. The loss is multiplied by a power of two, the gradients are
divided by it before they are clipped. Where they overflow, the step is left out and the scale halved; after many steps
without it is doubled. The numbers are those of torch.amp.GradScaler, which is not used: the loop knows already whether
the norm over all ranks and slices is finite, and the scale has to lie in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from velm_cli.engine.parallel import is_slice
from velm_cli.engine.progress import Progress
from velm_cli.schema import Precision

GROWS_AFTER = 2000  # updates without an overflow
LARGEST = 2.0**24


def scale_of(progress: Progress, precision: Precision) -> float:
    """What the loss is multiplied with; 1 where nothing vanishes."""
    return progress.grad_scale if precision is Precision.fp16 else 1.0


def unscale(parameters: list[nn.Parameter], scale: float) -> None:
    """Divide the gradients by the scale of the loss."""
    if scale == 1:
        return
    grads = [p.grad.to_local() if is_slice(p.grad) else p.grad for p in parameters if p.grad is not None]
    torch._foreach_mul_(grads, 1 / scale)


def is_skipped(progress: Progress, precision: Precision, norm: Tensor, losses_are_finite: Callable[[], bool]) -> bool:
    """Whether the step is left out, since its gradients overflowed; the next scale is then in `progress`.

    False, too, where no smaller scale would help: the losses are not finite, or the scale is 1.
    """
    if precision is not Precision.fp16:
        return False
    if torch.isfinite(norm):
        progress.steps_at_scale += 1
        if progress.steps_at_scale >= GROWS_AFTER and progress.grad_scale < LARGEST:
            progress.grad_scale, progress.steps_at_scale = 2 * progress.grad_scale, 0
        return False
    if progress.grad_scale <= 1 or not losses_are_finite():
        return False
    progress.grad_scale, progress.steps_at_scale = progress.grad_scale / 2, 0
    progress.skipped_steps += 1
    return True
