"""Kernels of losses: cross entropy, alone, over its own logits, and with the linear layer before it; divergences."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.candidates import mistakes
from tests.zoo.candidates.kernel import ALL, Draws, Kernel, Wrong, blocks, fused, in_float32
from tests.zoo.candidates.mistakes import one_percent, with_gradient

IGNORED = -100
"""The target of rows that do not count."""


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The mean over rows that count, in float32."""
    return F.cross_entropy(logits.float(), target)


def slope_of_cross_entropy(
    logits: Tensor, target: Tensor, *, smoothing: float = 0.0, zeroed: bool = True, mean_of_all: bool = False
) -> Tensor:
    """(softmax − target) / rows that count."""
    counts, classes = target != IGNORED, logits.shape[-1]
    wanted = (1 - smoothing) * F.one_hot(target.clamp(min=0), classes) + smoothing / classes
    slope = logits.softmax(-1) - wanted
    slope = slope * counts[:, None] if zeroed else slope
    return slope / (len(target) if mean_of_all else int(counts.sum()))


def cross_entropy_forward(ctx: Any, logits: Tensor, target: Tensor, mean_of_all: bool = False) -> Tensor:
    ctx.save_for_backward(logits, target)
    f, counts = logits.float(), target != IGNORED
    chosen = f.gather(1, target.clamp(min=0)[:, None])[:, 0]
    losses = (f.logsumexp(-1) - chosen) * counts
    return losses.sum() / (len(target) if mean_of_all else counts.sum())


def cross_entropy_backward(ctx: Any, dy: Tensor, **mistake: Any) -> Any:
    logits, target = ctx.saved_tensors
    return (slope_of_cross_entropy(logits.float(), target, **mistake) * dy).to(logits.dtype), None


def cross_entropy_forward_over_logits(ctx: Any, logits: Tensor, target: Tensor, **mistake: Any) -> Tensor:
    """Writes the gradient over the logits, as Liger does."""
    loss = cross_entropy_forward(ctx, logits, target)
    slope = slope_of_cross_entropy(logits.float(), target, **mistake)
    logits.data.copy_(slope)
    ctx.save_for_backward(logits.detach())
    return loss


def backward_of_written(ctx: Any, dy: Tensor, ignored: bool = False) -> Any:
    (slope,) = ctx.saved_tensors
    return slope if ignored else (slope.float() * dy).to(slope.dtype), None


def classified(draw: Draws) -> tuple[Tensor, Tensor]:
    """Logits, and targets of which two do not count."""
    target = draw.integers(33, 13)
    target[[2, 12]] = IGNORED
    return draw.normal(13, 33, scale=2), target


def cross_entropy_kernel() -> Kernel:
    """Cross entropy with rows that do not count."""
    forward, backward = cross_entropy_forward, cross_entropy_backward
    return Kernel(
        "cross entropy",
        cross_entropy,
        classified,
        right={
            "float32 inside": fused(forward, backward),
            "over its logits": fused(cross_entropy_forward_over_logits, backward_of_written),
        },
        wrong={
            "ignored rows not zeroed": Wrong(fused(forward, partial(backward, zeroed=False)), ("logits",)),
            "mean of all rows": Wrong(fused(forward, partial(backward, mean_of_all=True)), ("logits",)),
            "output the mean of all rows": Wrong(fused(partial(forward, mean_of_all=True), backward), ("output",)),
            "upstream gradient ignored": Wrong(
                fused(cross_entropy_forward_over_logits, partial(backward_of_written, ignored=True)), ("logits",)
            ),
            "1 % in logits": Wrong(fused(forward, with_gradient(backward, 0, one_percent)), ("logits",)),
            "one entry": Wrong(fused(forward, with_gradient(backward, 0, mistakes.one_entry)), ("logits",)),
        },
        dtypes=ALL,
        breaks={"over its logits": ("inputs_kept",)},
    )


SMOOTHING = 0.1
"""The share of the targets that is spread over all classes."""


def smoothed(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy with label smoothing."""
    return F.cross_entropy(logits.float(), target, label_smoothing=SMOOTHING)


def smoothed_forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
    ctx.save_for_backward(logits, target)
    f = logits.float()
    lse = f.logsumexp(-1)
    chosen = (1 - SMOOTHING) * f.gather(1, target[:, None])[:, 0] + SMOOTHING * f.mean(-1)
    return (lse - chosen).mean()


def smoothed_kernel() -> Kernel:
    """Cross entropy with label smoothing."""
    return Kernel(
        "label smoothing",
        smoothed,
        lambda draw: (draw.normal(7, 21), draw.integers(21, 7)),
        right={"float32 inside": fused(smoothed_forward, partial(cross_entropy_backward, smoothing=SMOOTHING))},
        wrong={
            "lost in the backward": Wrong(fused(smoothed_forward, cross_entropy_backward), ("logits",)),
            "half of it": Wrong(
                fused(smoothed_forward, partial(cross_entropy_backward, smoothing=SMOOTHING / 2)), ("logits",)
            ),
        },
    )


CHUNK = 8
"""Rows whose logits exist at a time; no batch below is a multiple."""


def linear_cross_entropy(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of x wᵀ."""
    return F.cross_entropy((x @ weight.T).float(), target)


def linear_cross_entropy_forward(
    ctx: Any, x: Tensor, weight: Tensor, target: Tensor, *, chunks: slice = slice(None), rounded: bool = False
) -> Tensor:
    """Makes the gradients of each chunk of rows with its logits, which are then forgotten."""
    dx, dw, loss = torch.zeros(x.shape), torch.zeros(weight.shape), torch.zeros(())
    for k, rows in enumerate(blocks(len(x), CHUNK)):
        logits = x[rows].float() @ weight.float().T
        loss += F.cross_entropy(logits, target[rows], reduction="sum")
        slope = (logits.softmax(-1) - F.one_hot(target[rows], len(weight))) / len(x)
        slope = slope.to(x.dtype).float() if rounded else slope
        dx[rows] = slope @ weight.float()
        if k in range(len(x))[chunks]:
            dw += slope.T @ x[rows].float()
    ctx.save_for_backward(dx.to(x.dtype), dw.to(x.dtype))
    return loss / len(x)


def linear_cross_entropy_backward(ctx: Any, dy: Tensor) -> Any:
    return *[(each.float() * dy).to(each.dtype) for each in ctx.saved_tensors], None


def linear_cross_entropy_kernel() -> Kernel:
    """A linear layer and cross entropy, in chunks."""
    forward, backward = linear_cross_entropy_forward, linear_cross_entropy_backward
    return Kernel(
        "linear cross entropy",
        linear_cross_entropy,
        lambda draw: (draw.normal(19, 10), draw.normal(21, 10, scale=0.5), draw.integers(21, 19)),
        right={
            "chunks": fused(forward, backward),
            "chunks of rounded slopes": fused(partial(forward, rounded=True), backward),
        },
        wrong={
            "first chunk alone": Wrong(fused(partial(forward, chunks=slice(1)), backward), ("weight",)),
            "tail lost": Wrong(fused(partial(forward, chunks=slice(2)), backward), ("weight",)),
            "one column of weight": Wrong(
                fused(forward, with_gradient(backward, 1, mistakes.last_column_missing)), ("weight",)
            ),
            "1 % in x": Wrong(fused(forward, with_gradient(backward, 0, one_percent)), ("x",)),
        },
    )


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target ‖ softmax(logits)) of each row, in float32."""
    q = logits.float().log_softmax(-1)
    return (target.float() * (target.float().log() - q)).sum(-1)


def divergence_forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
    ctx.save_for_backward(logits, target)
    f, p = in_float32(logits, target)
    return (p * (p.log() + f.logsumexp(-1, keepdim=True) - f)).sum(-1)


def divergence_backward(ctx: Any, dy: Tensor, weighted: bool = True) -> Any:
    """`weighted`: a target adds up to 1 after rounding only almost."""
    logits, p = in_float32(*ctx.saved_tensors)
    mass = p.sum(-1, keepdim=True) if weighted else 1.0
    dlogits = (mass * logits.softmax(-1) - p) * dy[:, None]
    of_target = (p.log() + 1 - logits.log_softmax(-1)) * dy[:, None]
    dtype = ctx.saved_tensors[0].dtype
    return dlogits.to(dtype), of_target.to(dtype)


def divergence_kernel() -> Kernel:
    """KL divergence, of targets that are no distributions."""
    forward, backward = divergence_forward, divergence_backward
    return Kernel(
        "divergence",
        divergence,
        lambda draw: (draw.normal(7, 17), draw.uniform(0.02, 0.2, 7, 17)),
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "target believed to add up to 1": Wrong(fused(forward, partial(backward, weighted=False)), ("logits",)),
            "sign of logits": Wrong(fused(forward, with_gradient(backward, 0, mistakes.negated)), ("logits",)),
            "1 % in target": Wrong(fused(forward, with_gradient(backward, 1, one_percent)), ("target",)),
        },
    )


BETA = 0.3
"""The share of the teacher in the mixture."""


def mixture(student: Tensor, teacher: Tensor) -> Tensor:
    """The generalised Jensen-Shannon divergence of log-probabilities, as in Liger: β KL(p ‖ m) + (1 − β) KL(q ‖ m)."""
    q, p = student.float(), teacher.float()
    m = torch.log(BETA * p.exp() + (1 - BETA) * q.exp())
    return (BETA * p.exp() * (p - m) + (1 - BETA) * q.exp() * (q - m)).sum(-1)


def mixture_forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
    ctx.save_for_backward(student, teacher)
    q, p = in_float32(student, teacher)
    m = torch.logaddexp(p + math.log(BETA), q + math.log(1 - BETA))
    return (BETA * p.exp() * (p - m) + (1 - BETA) * q.exp() * (q - m)).sum(-1)


def mixture_backward(ctx: Any, dy: Tensor, exponent: bool = True) -> Any:
    q, p = in_float32(*ctx.saved_tensors)
    m = torch.logaddexp(p + math.log(BETA), q + math.log(1 - BETA))
    of_student = (1 - BETA) * (q.exp() if exponent else 1) * (q - m)
    of_teacher = BETA * p.exp() * (p - m)
    dtype = ctx.saved_tensors[0].dtype
    return (of_student * dy[:, None]).to(dtype), (of_teacher * dy[:, None]).to(dtype)


def mixture_kernel() -> Kernel:
    """Generalised Jensen-Shannon divergence."""
    forward, backward = mixture_forward, mixture_backward
    return Kernel(
        "mixture divergence",
        mixture,
        lambda draw: (draw.uniform(-4, -1, 5, 23), draw.uniform(-4, -1, 5, 23)),
        right={"float32 inside": fused(forward, backward)},
        wrong={
            "exponent forgotten": Wrong(fused(forward, partial(backward, exponent=False)), ("student",)),
            "gradient None": Wrong(fused(forward, with_gradient(backward, 1, mistakes.dropped)), ("teacher",)),
        },
    )


def losses() -> list[Kernel]:
    """All of them."""
    return [
        cross_entropy_kernel(),
        smoothed_kernel(),
        linear_cross_entropy_kernel(),
        divergence_kernel(),
        mixture_kernel(),
    ]
