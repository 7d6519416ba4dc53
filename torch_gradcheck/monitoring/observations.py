"""What the history of a run says of the flow of gradients: that they vanish, explode, or never reach a layer.

These are observations, not mistakes: a gradient may be right to the last digit and too small to train anything. Each
rule is meant to be silent on nets that train; the figures behind the thresholds are in docs/guide/history.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from statistics import median

from torch_gradcheck.monitoring.history import GradientHistory
from torch_gradcheck.monitoring.layers import Flow, Layer, flow_of
from torch_gradcheck.monitoring.magnitudes import joint_norm
from torch_gradcheck.reporting.facts import Status
from torch_gradcheck.reporting.words import listed

VANISHED = 1e-5
"""Gradients of the first layers this small beside those of later ones have vanished, if they are `LOST` as well. A net
of 8 layers with sigmoids comes to 1e-6 (Glorot and Bengio, 2010), nets that train to 1e-3 at the least."""

SUDDEN = 1e-2
"""The next layer is this large beside later ones: between them gradients have not shrunk, they have stopped."""

LOST = 1e-6
"""A gradient this small beside its weights is lost: float32 does not resolve what SGD adds with a rate of 0.05."""

GROWN = 100.0
"""The norm of all gradients has exploded where it is this many times what it was on any step that was checked before
(AutoTrainer, Zhang et al., 2021, takes 70 between layers), and exceeds that of the weights: nets that leave a plateau
do the former only."""

HUGE = 100.0
"""Gradients have exploded on their way back where the norm of all of them is this many times that of the weights, and
they are `STEEP`. In nets that train it is below 1, and up to 70 where a loss is a sum over the batch."""

STEEP = 1e3
"""Gradients of the middle layer are this many times the smallest of the last layer, mostly those of its bias. Nets that
train come to 10."""

VAST = 1e8
"""The same, whatever the layers are to each other: where the loss itself has exploded all of them are as large. A sum
over all the pixels of 32 images comes to 1e6."""

LEAP = 10.0
"""An update this many times as large as all the weights replaces them; if the gradient is that large as well, it has
exploded. Around 1e-3 is usual. Weights that begin at 0, or near it, are replaced by gradients that are small."""


class ObservationKind(StrEnum):
    """What was observed."""

    VANISHING = "vanishing"
    EXPLODING = "exploding"
    ZERO = "zero"


@dataclass(frozen=True, slots=True)
class Observation:
    """Something about the flow of gradients that is worth a look.

    Attributes:
        kind: `vanishing`, `exploding` or `zero`.
        step: the last checked step that shows it.
        layers: the modules it is about, in the order of `named_parameters()`.
        message: the observation with its figures, in one sentence.
    """

    kind: ObservationKind
    step: int
    layers: tuple[str, ...]
    message: str


def observed(history: GradientHistory, scaled: bool = False) -> list[Observation]:
    """The observations on a run, by what was recorded on its checked steps.

    Args:
        history: of the run.
        scaled: the losses are scaled: steps with infinite gradients are skipped then, and the scale is lowered.
    """
    flow = flow_of(history)
    if not flow:
        return []
    exploding = [_not_finite(flow, scaled), _leap(flow), _grown(flow), _huge(flow)]
    first = [each for each in exploding if each is not None][:1]  # one of them is enough
    return first + [each for each in (_vanishing(flow), _zero(flow)) if each is not None]


def _vanishing(flow: Flow) -> Observation | None:
    """The first layers, where none of them gets a gradient worth mentioning: no path leads past those that shrink it.

    A branch that a gate near 0 closes (zero-initialised, LayerScale) has layers with a gradient before it.
    """
    lost = {step: _lost_prefix(layers) for step, layers in flow.items()}
    step = max(flow)
    names = [layer.name for layer in flow[step][: lost[step]]]
    if not names:
        return None
    first, later = flow[step][0], flow[step][lost[step] :]
    largest = max(later, key=lambda layer: layer.size)
    since = _since([each for each in flow if lost[each]], list(flow))
    message = (
        f"vanishing gradients in {_named(names)}: on step {step} those of {first.name} are "
        f"{first.size / largest.size:.1g} times as large as those of {largest.name} (root mean square){since}"
    )
    return Observation(ObservationKind.VANISHING, step, tuple(names), message)


def _lost_prefix(layers: Sequence[Layer]) -> int:
    """How many of the first layers have gradients that have vanished, all of them together.

    A net shrinks gradients layer by layer. Where they stop at once the check must have told them from 0: what is added
    to the input of a normalization has no gradient but rounding.
    """
    so_far = list(accumulate([layer.size for layer in layers], max))
    lost, reference = 0, 0.0
    for count in range(1, len(layers) - 1):
        later = sorted([layer.size for layer in layers[count:]])[-2]  # an outlier is no yardstick
        last = layers[count - 1]
        if not 0 < so_far[count - 1] <= VANISHED * later or last.grad_norm > LOST * last.weight_norm:
            break
        lost, reference = count, later
    is_sudden = layers[lost].size > SUDDEN * reference
    return 0 if is_sudden and not any(layer.is_resolved for layer in layers[:lost]) else lost


def _not_finite(flow: Flow, scaled: bool) -> Observation | None:
    """The last step with NaN or infinity, unless a scaler skipped it."""
    for step, layers in reversed(flow.items()):
        names = [layer.name for layer in layers if not layer.is_finite]
        if names and not (scaled and not _has_moved(layers)):
            message = f"exploding gradients in {_named(names)}: NaN or infinity in .grad on step {step}"
            return Observation(ObservationKind.EXPLODING, step, tuple(names), message)
    return None


def _grown(flow: Flow) -> Observation | None:
    """The step on which the norm of all gradients is largest, if it has grown out of all proportion."""
    norms = {step: _grad_norm(layers) for step, layers in flow.items()}
    before, found = 0.0, None
    for step, norm in norms.items():
        if not math.isfinite(norm):
            continue
        if before and norm > GROWN * before and norm > _weight_norm(flow[step]):
            found = (step, before)
        before = max(before, norm)
    if found is None:
        return None
    step, before = found
    most = max(flow[step], key=lambda layer: layer.grad_norm).name
    message = (
        f"exploding gradients, most in {_named([most])}: on step {step} the norm of all of them is {norms[step]:.2g}, "
        f"and was at most {before:.2g} on the checked steps before"
    )
    return Observation(ObservationKind.EXPLODING, step, (most,), message)


def _huge(flow: Flow) -> Observation | None:
    """All steps, where gradients are out of all proportion to the weights, as with weights that are too large."""
    if not all(_is_huge(layers) for layers in flow.values()):
        return None
    step, layers = max(flow), flow[max(flow)]
    names = [layer.name for layer in layers if layer.grad_norm > HUGE * layer.weight_norm]
    growth = _growth(layers)
    grows = f", and those of the middle layer are {growth:.1g} times the smallest of {layers[-1].name}"
    message = (
        f"exploding gradients in {_named(names)}: on step {step} the norm of all of them is {_proportion(layers):.1g} "
        f"times that of the weights{grows if growth > STEEP else ''}"
    )
    return Observation(ObservationKind.EXPLODING, step, tuple(names), message)


def _leap(flow: Flow) -> Observation | None:
    """The last step after which the optimizer replaced the weights rather than moved them."""
    for step, layers in reversed(flow.items()):
        update = joint_norm([row.update_norm or 0.0 for layer in layers for row in layer.rows])
        weights = _weight_norm(layers)
        if 0 < LEAP * weights < min(update, _grad_norm(layers)) and update < math.inf:
            names = [layer.name for layer in layers if (layer.update_ratio or 0.0) > LEAP]
            message = (
                f"exploding gradients in {_named(names)}: after step {step} the optimizer moved all weights by "
                f"{update / weights:.1g} times their norm"
            )
            return Observation(ObservationKind.EXPLODING, step, tuple(names), message)
    return None


def _is_huge(layers: Sequence[Layer]) -> bool:
    proportion = _proportion(layers)
    return VAST < proportion < math.inf or (HUGE < proportion < math.inf and _growth(layers) > STEEP)


def _proportion(layers: Sequence[Layer]) -> float:
    """The norm of all gradients by that of all weights."""
    weights = _weight_norm(layers)
    return _grad_norm(layers) / weights if weights else 0.0


def _growth(layers: Sequence[Layer]) -> float:
    """How many times the smallest gradients of the last layer those of the middle layer are; 0 where it is unknown."""
    last = layers[-1]
    known = [size for size, row in zip(last.sizes, last.rows, strict=True) if size and row.status != Status.FLAT]
    return median([layer.size for layer in layers]) / min(known) if known else 0.0


def _zero(flow: Flow) -> Observation | None:
    """Layers of which every entry of every gradient was 0 on all checked steps, though weights have moved between them.

    On the first step alone it is no news: what stands behind zero-initialised weights has no gradient there.
    """
    steps = list(flow)
    if not [step for step in steps[:-1] if _has_moved(flow[step])]:
        return None
    zero = [{layer.name for layer in flow[step] if all(row.zeros == 1 for row in layer.rows)} for step in steps]
    names = [layer.name for layer in flow[steps[-1]] if all(layer.name in each for each in zero)]
    if not names:
        return None
    message = f"no gradient in {_named(names)}: every entry of .grad was 0 on all {len(steps)} checked steps"
    return Observation(ObservationKind.ZERO, steps[-1], tuple(names), message)


def _has_moved(layers: Sequence[Layer]) -> bool:
    return any(row.update_norm for layer in layers for row in layer.rows)


def _grad_norm(layers: Sequence[Layer]) -> float:
    return joint_norm([layer.grad_norm for layer in layers])


def _weight_norm(layers: Sequence[Layer]) -> float:
    return joint_norm([layer.weight_norm for layer in layers])


def _since(steps: Sequence[int], checked: Sequence[int]) -> str:
    """The words on the first of the checked steps from which on all of them are among `steps`."""
    if len(checked) == 1:
        return ""
    first = checked[-1]
    for step in reversed(checked):
        if step not in steps:
            break
        first = step
    return "" if first == checked[-1] else f", and so it has been since step {first}"


def _named(layers: Sequence[str]) -> str:
    return f"layer{'' if len(layers) == 1 else 's'} {listed(layers)}"
