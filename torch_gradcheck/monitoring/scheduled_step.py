"""A scheduled step of a training loop: its batches as they come, what the step before left, and the check of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.borrowing.assembly import assembled
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.gradients.left_in_grad import left_gradients, theta_in_grad
from torch_gradcheck.monitoring.forward_hook import ForwardHook
from torch_gradcheck.monitoring.joined import joined
from torch_gradcheck.monitoring.recorder import Recorder
from torch_gradcheck.objective.loss import Loss, MeanLoss
from torch_gradcheck.pipeline.backward import check_backward
from torch_gradcheck.pipeline.provenance import with_provenance
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.request import Request, positive_number
from torch_gradcheck.torch_internals.optimizers import Scaling
from torch_gradcheck.training_step.check import check_left_in_grad
from torch_gradcheck.training_step.ranks.exchange import step_of_all
from torch_gradcheck.training_step.step import TrainingStep
from torch_gradcheck.training_step.window import Window


@dataclass(frozen=True)
class Declared:
    """What the caller has said of the loop.

    Attributes:
        compiled: the loop calls a compiled form of the model.
        accumulate: the batches of a step, unless it ends early.
        clip_norm, clip_value: limits that the loop has put on `.grad` when it calls `step`.
        scaler: the scaler of its losses.
    """

    compiled: bool
    accumulate: int
    clip_norm: float | None
    clip_value: float | None
    scaler: torch.amp.GradScaler | None

    @property
    def scaling(self) -> Scaling:
        """The loss scale, and what the scaler has done about it since its last update."""
        return Scaling.of(self.scaler)


class ScheduledStep:
    """The step that is checked next, or is under way.

    Args:
        model: what is trained.
        loss: from a batch to the loss on it.
        request: the options of the check.
        declared: what the caller has said of the loop.
        hook: notes the forwards of the step.

    Attributes:
        loss: as given.
        batches: those that have come.
        divisor: what the sum of their losses is divided by; None: by their weights.
        weights: what each of them counts; empty where they count the same.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[Any], Loss], request: Request, declared: Declared, hook: ForwardHook
    ) -> None:
        self._model, self.loss, self._request, self._declared, self._hook = model, loss, request, declared, hook
        self.batches: list[Any] = []
        self.weights: list[float] = []
        self.divisor: float | None = None
        self._earlier: dict[torch.Tensor, Floats] = {}
        self._previous: Loss | None = None

    def add(self, batch: Any, weight: Any) -> None:
        """Takes one more batch and its weight; a window has one for each of its batches, or none."""
        self.batches.append(batch)
        if weight is not None:
            self.weights.append(positive_number("weight", weight))
        if len(self.weights) not in (0, len(self.batches)):
            raise InvalidRequestError(
                "weight must be given with every batch of a window, or with none: "
                f"{len(self.weights)} of {len(self.batches)} batches have one."
            )

    def remember(self, batches: Sequence[Any]) -> None:
        """Keeps what a step leaves and the next, scheduled one may hold by mistake: its `.grad`, its batches."""
        divisor = self.divisor or max(self._declared.accumulate, len(batches))
        self._previous = MeanLoss([self.loss(batch) for batch in batches], divisor)
        request, declared = self._request, self._declared
        with request.team.together(), assembled(self._model):
            theta = theta_in_grad(self._model, request.include, request.exclude, self._previous.variables)
            left = left_gradients(theta, declared.scaling)
            self._earlier = {theta[at].parameter: each.values for at, each in left.items()}

    def forget(self) -> None:
        """Lets go of everything remembered."""
        self.batches, self.weights, self._earlier, self._previous = [], [], {}, None

    def checked(self, recorder: Recorder, number: int) -> Report:
        """The model's backward, then `.grad`, on the same batches: those of all ranks, where there are several.

        Args:
            recorder: notes what `.grad` and the weights are, before a check that may fail and after it.
            number: of the step.
        """
        request, loss, step = self._request, self.loss(self.batches[0]), self._training_step()
        with request.team.together(), assembled(self._model, loss.holders) as whole:
            recorder.note_gradients(number, self._model, loss.variables, step.scaling)
            try:
                report = whole.told(self._judged(step_of_all(request, self._model, loss, step)))
                call = f"GradientMonitor(model, loss_fn, at={number})"
                return with_provenance(report, call, self._model, request)
            finally:
                recorder.keep_weights(number, self._model, is_sharded=bool(step.shards))

    def _judged(self, step: TrainingStep) -> Report:
        request, window = self._request, step.window
        assert window is not None
        starts = [forward.start for forward in step.forwards or ()] if step.start is not None else []
        report, examined = check_backward(self._model, window.mean(), request, step.buffers)
        of_grad = replace(request, gradients="grad", mode="keep")
        return joined(report, check_left_in_grad(self._model, window.mean(starts), of_grad, step, examined))

    def _training_step(self) -> TrainingStep:
        """What this process knows of the step."""
        declared = self._declared
        step = TrainingStep(
            forwards=tuple(self._hook.calls),
            batches=len(self.batches),
            compiled=declared.compiled,
            scaling=declared.scaling,
            clip_norm=declared.clip_norm,
            clip_value=declared.clip_value,
            earlier=self._earlier,
            previous=self._previous,
            window=self._window(),
        )
        return step.before_assembly(self._model)

    def _window(self) -> Window:
        """The batches of the step with the weights that they were given."""
        losses, weights = [self.loss(batch) for batch in self.batches], tuple(self.weights)
        divisor = self.divisor or sum(weights) or len(losses)
        return Window(losses, weights, divisor, self._declared.accumulate)
