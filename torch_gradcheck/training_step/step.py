"""A training step whose `.grad` is on trial: its forwards, scales and limits, and the reasons against a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.borrowing.assembly import shard_rows
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.objective.loss import Loss
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.torch_internals.autograd import has_post_accumulate_hooks, post_accumulate_hooks
from torch_gradcheck.torch_internals.code_lines import at_line_of
from torch_gradcheck.torch_internals.data_parallel import computed_in, reduced_in, waiting_for_reduction
from torch_gradcheck.torch_internals.modules import is_dropout, named_modules
from torch_gradcheck.torch_internals.optimizers import Scaling
from torch_gradcheck.training_step.forward_state import Autocast, SeenForward
from torch_gradcheck.training_step.window import Window


@dataclass(frozen=True)
class TrainingStep:
    """One step of a training loop, between its backward and its optimizer.

    Attributes:
        forwards: the model's own forwards of this step; None where nobody watched.
        batches: how many forwards and backwards make up the step.
        compiled: the loop called a compiled form of the model.
        scaling: the loss scale, which `.grad` may still carry, and what a gradient scaler has found in `.grad`.
        clip_norm, clip_value: limits the loop has put on `.grad` already.
        earlier: parameter → its `.grad` when the step before was done with it.
        previous: J of the batch before.
        window: the batches of the step and their weights; None where they are not known one by one.
        moved: why `.grad`, of another rank perhaps, is not of the present weights; "" where nothing says so.
        buffers: the leader's buffers, from which J of this rank starts as well; None where the rank is alone.
        shards: parameter's name → the entries of dim 0, from and to, that each rank holds; of those that are sharded.
        waiting: the names of the parameters of whose gradient FSDP2 holds a part that it has not reduced.
        reduced_in: the dtype that gradients are compressed to before they are summed over the ranks; None: their own.
        computed_in: the dtype that FSDP2 casts parameters and inputs to for the forward; None: their own.
    """

    forwards: tuple[SeenForward, ...] | None = None
    batches: int = 1
    compiled: bool = False
    scaling: Scaling = field(default_factory=Scaling)
    clip_norm: float | None = None
    clip_value: float | None = None
    earlier: Mapping[torch.Tensor, Floats] = field(default_factory=dict)
    previous: Loss | None = None
    window: Window | None = None
    moved: str = ""
    buffers: Start | None = None
    shards: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    waiting: frozenset[str] = frozenset()
    reduced_in: torch.dtype | None = None
    computed_in: torch.dtype | None = None

    @property
    def start(self) -> Start | None:
        """The state the first forward started from, None where the forwards seen are not those of the step."""
        return self.forwards[0].start if self.forwards and len(self.forwards) == self.batches else None

    @property
    def autocast(self) -> Autocast | None:
        """The autocast the forwards ran under; None where nobody saw."""
        return self.forwards[0].autocast if self.forwards else None

    def held_grad(self, tensor: torch.Tensor) -> bool | None:
        """Whether a tensor had a `.grad` when the step's first forward with it began; None where nobody saw that."""
        seen = [each.held_grad[id(tensor)] for each in self.forwards or () if id(tensor) in each.held_grad]
        return seen[0] if seen else None

    def before_assembly(self, model: nn.Module) -> TrainingStep:
        """The same, with what can only be told before a sharded model is made whole."""
        # What makes it whole writes to its tensors.
        forwards = None if self.forwards is None else tuple(replace(each, versions={}) for each in self.forwards)
        return replace(
            self,
            forwards=forwards,
            moved=self.weights_moved(),
            shards=shard_rows(model),
            waiting=frozenset(waiting_for_reduction(model)),
            reduced_in=reduced_in(model),
            computed_in=computed_in(model),
        )

    def weights_moved(self) -> str:
        """The reason why `.grad` is not of the present weights; "" where nothing says so."""
        if self.moved or not self.forwards or not self.forwards[0].weights_moved():
            return self.moved
        if self.forwards[-1].weights_moved():
            return (
                "the weights have been written to since the step's forward: .grad is not of the present ones. "
                "Call step() after backward() and before optimizer.step()"
            )
        if len(self.forwards) == self.batches:
            first = next(i for i, forward in enumerate(self.forwards) if not forward.weights_moved())
            return (
                f"the weights were written to between batch {first} and batch {first + 1} of the {self.batches} that "
                "make up this step: .grad is not of the present ones. Say step(batch, last=True) where a window ends "
                "early, and check accumulate="
            )
        return ""

    def not_replayed(self, model: nn.Module) -> str:
        """The reason why a step that draws random numbers, or reads its own updates, cannot be run again."""
        if self.forwards is None:
            seen = "nobody saw what it started from: a GradientMonitor made before the step does"
        elif not self.forwards:
            seen = "its forward did not go through a call of the model, so nobody saw what it started from"
        else:
            count = "1 forward was" if len(self.forwards) == 1 else f"{len(self.forwards)} forwards were"
            seen = f"{count} seen in this step where {self.batches} was expected (accumulate=)"
        return f"the training step was {_what_is_random(model)}, and {seen}"


def taken_in_backward(theta: Theta) -> str:
    """The reason why `.grad` may be gone: hooks that run as soon as it is there; "" where there are none."""
    hooked = [entry for entry in theta if has_post_accumulate_hooks(entry.parameter)]
    if not hooked:
        return ""
    lines = dict.fromkeys(map(at_line_of, post_accumulate_hooks(hooked[0].parameter)))
    return (
        f"hooks of register_post_accumulate_grad_hook on {len(hooked)} of {len(theta)} parameters "
        f"({hooked[0].name}{','.join(lines)}, ...) may have taken .grad, and moved the weights, inside the backward"
    )


def _what_is_random(model: nn.Module) -> str:
    droppers = [
        name or "the model"
        for name, module in named_modules(model)
        if is_dropout(module) and module.training and module.p
    ]
    return f"random (active dropout in {', '.join(droppers[:3])})" if droppers else "random, or reads what it updates"
