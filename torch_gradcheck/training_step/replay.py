"""Replays of a training step in its own precisions: once plainly, then with rounding as noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from torch_gradcheck.arrays import Floats, blocks
from torch_gradcheck.borrowing.loan import Borrowed, Start, lend
from torch_gradcheck.engines.traced.threads import OnThreads
from torch_gradcheck.gradients.by_autograd import theta_gradients
from torch_gradcheck.objective.loss import Compute, Loss
from torch_gradcheck.objective.nested import rebuilt
from torch_gradcheck.objective.returned import scalar
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.precision.dtypes import epsilon, name_of
from torch_gradcheck.precision.rounding_noise import RoundingMode
from torch_gradcheck.training_step.forward_state import Autocast

Held = NDArray[np.float32] | NDArray[np.float64]

NOISY_RUNS = 4
"""Replays with rounding as noise; their spread says how far rounding can move a gradient."""


@dataclass(frozen=True)
class Regime:
    """The autocast a training step computed under, the scale of its loss, and the dtype FSDP2 cast its model to."""

    autocast: Autocast
    scale: float = 1.0
    cast_to: torch.dtype | None = None

    @property
    def is_plain(self) -> bool:
        """Whether no autocast was on, nor anything cast."""
        return self.cast_to is None and not any(enabled for enabled, _ in self.autocast.values())

    def __str__(self) -> str:
        if self.cast_to is not None:
            return f"mixed precision with {name_of(self.cast_to)}"
        names = [name_of(dtype) for enabled, dtype in self.autocast.values() if enabled]
        return f"autocast to {names[0]}" if names else "no autocast"


CAST = 4 * float(np.finfo(np.float64).eps)
"""How far noise moves a number that is cast to float64, relative to it."""


class Runs(Sequence[Floats]):
    """The gradient of each run, in float64 when it is asked for; held as `_held` has it."""

    def __init__(self, held: Sequence[Held]) -> None:
        self._held = held

    @overload
    def __getitem__(self, run: int) -> Floats: ...

    @overload
    def __getitem__(self, run: slice) -> Sequence[Floats]: ...

    def __getitem__(self, run: int | slice) -> Floats | Sequence[Floats]:
        return Runs(self._held[run]) if isinstance(run, slice) else self._held[run].astype(np.float64, copy=False)

    def __len__(self) -> int:
        return len(self._held)


@dataclass(frozen=True)
class Replays:
    """Losses and gradients of the replays, the first without noise.

    Attributes:
        regime: autocast and loss scale of all of them.
        losses: J of each run.
        gradients: position in θ → the gradient of each run.
        again: position in θ → the gradient of one more run without noise, by another number of threads and with the
            casts of autocast kept; of steps in a coarse precision on the CPU only.
        unscaled: the same without the loss scale, where that overflows and a scaler skips such a step.
    """

    regime: Regime
    losses: Floats
    gradients: Mapping[int, Sequence[Floats]]
    again: Mapping[int, Floats] = field(default_factory=dict)
    unscaled: Replays | None = None

    def all_of(self, position: int) -> list[Floats]:
        """The gradient of every run of one tensor."""
        return [*self.gradients[position], *([self.again[position]] if position in self.again else [])]

    @cached_property
    def overflowing(self) -> frozenset[int]:
        """The tensors that are not finite in some run, by position in θ."""
        return frozenset(at for at in self.gradients if not all(np.isfinite(run).all() for run in self.all_of(at)))

    @cached_property
    def within_range(self) -> Replays:
        """The same, without the loss scale for those tensors for which it overflows."""
        if self.unscaled is None:
            return self
        gradients = {at: (self.unscaled if at in self.overflowing else self).gradients[at] for at in self.gradients}
        return replace(self, gradients=gradients, unscaled=None)


def replays_of(
    model: nn.Module,
    loss: Loss,
    theta: Theta,
    regime: Regime,
    seed: int,
    start: Start | None,
) -> Replays | None:
    """Runs the step's forward and backward on a loan in the model's own dtypes; None where that cannot be done."""
    generator, threads = torch.Generator().manual_seed(seed), torch.get_num_threads()  # the loan may set it to 1
    runs: list[tuple[float, dict[int, Held]]] = []
    again: Mapping[int, Floats] = {}
    lent = lend(model, loss.holders, "keep", regime.cast_to, seed, start, objects_of(loss.variables))
    with lent as borrowed, InputsCast(model, regime.cast_to):
        try:
            compute = loss.at(None)
            with OnThreads(threads):
                runs.append(_run(compute, borrowed, theta, regime, None))
            noisy = [_run(compute, borrowed, theta, regime, RoundingMode(generator)) for _ in range(NOISY_RUNS)]
            runs += noisy
            if _may_repeat(theta, regime):
                with OnThreads(1 if threads > 1 else 2):
                    again_held = _run(compute, borrowed, theta, regime, None, cached=True)[1]
                    again = {position: values.astype(np.float64) for position, values in again_held.items()}
        except (RuntimeError, NotImplementedError):  # such as a kernel that this autocast has no dtype for
            return None
    by_position = {position: Runs([gradients[position] for _, gradients in runs]) for position in theta.checked}
    return Replays(regime, np.array([loss for loss, _ in runs]), by_position, again)


class InputsCast:
    """A block in which floating-point inputs of a model are cast to a dtype, as FSDP2 does; None: nothing is done."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        self._model, self._dtype = model, dtype
        self._handle: Any = None

    def __enter__(self) -> None:
        if self._dtype is not None:
            self._handle = self._model.register_forward_pre_hook(self._cast_all, with_kwargs=True, prepend=True)

    def __exit__(self, *exception: object) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _cast_all(self, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        cast: tuple[Any, Any] = rebuilt((args, kwargs), self._cast)
        return cast

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


def coarsest(theta: Theta, regime: Regime | None = None) -> torch.dtype:
    """The coarsest precision that parameters are kept, or autocast computes, in."""
    dtypes = [entry.own_dtype for entry in theta if entry.own_dtype.is_floating_point]
    dtypes += [dtype for enabled, dtype in (regime.autocast if regime else {}).values() if enabled]
    dtypes += [] if regime is None or regime.cast_to is None else [regime.cast_to]
    return max(dtypes, key=epsilon, default=torch.float64)


def _may_repeat(theta: Theta, regime: Regime) -> bool:
    """Whether a step in a coarse precision computes the same again: on the CPU it does, but for what threads share."""
    on_cpu = all(entry.parameter.device.type == "cpu" for entry in theta)
    return on_cpu and epsilon(coarsest(theta, regime)) > epsilon(torch.float32)


def _run(
    compute: Compute,
    borrowed: Borrowed,
    theta: Theta,
    regime: Regime,
    noise: RoundingMode | None,
    *,
    cached: bool = False,
) -> tuple[float, dict[int, Held]]:
    """J and its gradients; the loss is scaled for the backward, the gradients unscaled, as a GradScaler does.

    Where autocast keeps (`cached`) what it has cast, gradients of a weight that is used several times are summed in the
    coarse precision.
    """
    borrowed.before_evaluation()
    losses = []

    def scaled() -> torch.Tensor:
        with ExitStack() as stack:
            for device, (enabled, dtype) in regime.autocast.items():
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cached))
            losses.append(scalar(compute()))
        return losses[0] * regime.scale

    try:
        with torch.enable_grad(), ExitStack() as stack:
            if noise is not None:
                stack.enter_context(noise)
            gradients = theta_gradients(scaled, theta, epsilon(torch.float64))
        scale = 1.0 if borrowed.has_gradients() else regime.scale
    finally:
        borrowed.after_evaluation()
    held = {position: _held(gradients.pop(position).values, scale) for position in list(gradients)}
    return float(losses[0].detach()), held


def _held(values: Floats, scale: float) -> Held:
    """The numbers divided by a scale, in float32 where that holds all of them: in half the memory.

    The cast to float64, too, was moved by noise, of its own rounding.
    """
    divided = values if scale == 1 else values / scale
    single = np.empty(len(divided), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for block in blocks(len(divided)):
            single[block] = divided[block]
            if not np.allclose(single[block], divided[block], rtol=CAST, atol=0.0, equal_nan=True):
                return divided
    return single
