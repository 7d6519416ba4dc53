"""Checks a model's gradients from inside its training script, on the steps that are asked for, and leaves no trace."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.check import Patterns, check_backward
from torch_gradcheck.errors import (
    GradcheckError,
    GradientMismatchError,
    GradientMismatchWarning,
    InvalidRequestError,
)
from torch_gradcheck.gradients.left_in_grad import left_gradients
from torch_gradcheck.methods.choice import METHOD_NAMES
from torch_gradcheck.monitoring.forward_hook import ForwardHook
from torch_gradcheck.monitoring.joined import joined, why_grad_unjudged
from torch_gradcheck.monitoring.schedule import Due, Schedule
from torch_gradcheck.objective.loss import NOTHING, ClosureLoss, Loss, MeanLoss, ModuleLoss
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.reporting.render.outline import headline
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.request import Mode, callable_argument, one_of, positive_number, validated_request
from torch_gradcheck.torch_internals.modules import uncompiled
from torch_gradcheck.torch_internals.optimizers import has_unscaled
from torch_gradcheck.training_step.check import check_left_in_grad
from torch_gradcheck.training_step.forward_state import SeenForward
from torch_gradcheck.training_step.step import TrainingStep

logger = logging.getLogger("torch_gradcheck")

OnMismatch = Literal["raise", "warn", "record"]


class GradientMonitor:
    """Checks gradients on scheduled steps of a training loop: the model's backward, and what the loop left in `.grad`.

        with GradientMonitor(model, loss_fn, at=[0], every=1000) as monitor:
            for batch in loader:
                optimizer.zero_grad()
                loss = loss_fn(model(batch[0]), batch[1])
                loss.backward()
                monitor.step(batch)
                optimizer.step()

    The run with the monitor is bit for bit the run without it. It needs no `with`: `close()` does what leaving the
    block does. A step that draws random numbers (dropout) can be judged because the monitor sees what its forward
    started from: on scheduled steps, and only then, a hook on the model keeps the random state and the buffers.

    Args:
        model: what is trained. Of a compiled model, the compiled backward is on trial.
        loss_fn: as in `check_module`.
        at: the steps that are checked, counted from 0. A missing `zero_grad()` shows from step 1 on.
        every: every so many steps, 0 included, are checked too.
        on_mismatch: what a wrong gradient does: `"raise"` GradientMismatchError from `step`, `"warn"` with a
            GradientMismatchWarning, or `"record"`. What cannot be checked (a loss that is NaN) is treated alike.
        accumulate: gradients are accumulated over so many batches before each optimizer step, as their mean. `step` is
            then called after each backward; batches of one optimizer step count as one step.
        clip_norm, clip_value: the loop has clipped `.grad` to this norm, or value, when it calls `step`.
        scaler: a `torch.amp.GradScaler` whose scale `.grad` carries when the loop calls `step` before `unscale_`.
        method, eps, tolerance, include, exclude, mode, dtype, seed, progress: as in `check_module`. The `mode` is that
            of the model's check; `.grad` is judged in the mode the loop trains in.

    Attributes:
        reports: step → its report.
        errors: step → why it could not be checked.

    Raises:
        InvalidRequestError: an argument that cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Any],
        *,
        at: int | Iterable[int] = (0,),
        every: int | None = None,
        on_mismatch: OnMismatch = "raise",
        accumulate: int = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        method: str = "auto",
        eps: float | None = None,
        tolerance: float = 1e-5,
        include: Patterns = None,
        exclude: Patterns = None,
        mode: Mode = "eval",
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        progress: bool | None = None,
    ) -> None:
        self._request = validated_request(
            model,
            METHOD_NAMES,
            gradients=None,
            method=method,
            eps=eps,
            tolerance=tolerance,
            include=include,
            exclude=exclude,
            mode=mode,
            dtype=dtype,
            seed=seed,
            progress=progress,
        )
        callable_argument("loss_fn", loss_fn)
        self._model = uncompiled(model)
        if scaler is not None and not hasattr(scaler, "get_scale"):
            raise InvalidRequestError(f"scaler must be a torch.amp.GradScaler, got {type(scaler).__name__} {scaler!r}.")
        self._scaler = scaler
        self._loss: Callable[[Any], Loss] = partial(ModuleLoss, model, loss_fn)
        self._needs_batch = True
        self._on_mismatch = one_of("on_mismatch", on_mismatch, ("raise", "warn", "record"))
        self._clip_norm = None if clip_norm is None else positive_number("clip_norm", clip_norm)
        self._clip_value = None if clip_value is None else positive_number("clip_value", clip_value)
        self._schedule = Schedule(at, every, accumulate)
        self._divisor = self._schedule.accumulate
        self.reports: dict[int, Report] = {}
        self.errors: dict[int, GradcheckError] = {}
        self._hook = ForwardHook(model)
        self._batches: list[Any] = []
        self._earlier: dict[nn.Parameter, Floats] = {}
        self._previous: Loss | None = None
        self._await(0)

    @classmethod
    def of_closure(cls, model: nn.Module, closure: Callable[..., Any], **options: Any) -> GradientMonitor:
        """A monitor of a loss that `loss_fn(model(inputs), *targets)` has no words for.

        `step(batch)` then takes `closure(batch)` for the loss, and `step()` takes `closure()`, as `check_closure` does.
        Options are those of the class. Call `watch()` where the forward begins, if the step is random.
        """
        callable_argument("closure", closure)
        monitor = cls(model, closure, **options)
        monitor._loss, monitor._needs_batch = partial(ClosureLoss, closure), False
        return monitor

    def watch(self) -> AbstractContextManager[None]:
        """Says that a forward begins here, where the model is not called as a whole: `with monitor.watch(): ...`.

        Enter it within autocast, once for each batch. What a call of the model shows needs no `watch`.
        """
        if self._hook.attached:
            self._hook.note_now()
        return nullcontext()

    def step(self, batch: Any = NOTHING) -> Report | None:
        """After the backward and before the optimizer's step: checks, if this step is scheduled.

        Args:
            batch: what this step trained on, as `check_module` takes it.

        Returns:
            The report of a scheduled step, else None. A row is that of the model's backward, or that of `.grad` where
            only `.grad` is wrong; `report.in_grad` is the whole report on `.grad`.

        Raises:
            GradientMismatchError: a gradient is wrong, and `on_mismatch` is `"raise"`.
            GradcheckError: this step cannot be checked, and `on_mismatch` is `"raise"`.
        """
        due = self._schedule.called()
        return None if due is None else self._wake_up(due, batch)

    def step_over(self, batches: Callable[[], Sequence[Any]], divisor: int | None = None) -> Report | None:
        """`step` for trainers: one optimizer step over several batches, which are asked for when it is scheduled.

        J is the sum over them divided by `divisor`; None: by their number.
        """
        due = self._schedule.called()
        if due is None:
            return None
        seen = list(batches())
        self._divisor = divisor or len(seen)
        if due is Due.WITHIN:
            self._batches = seen
            return self._finish()
        self._begin_after(seen)
        return None

    @property
    def seen(self) -> list[SeenForward]:
        """The forwards of the step under way, as far as they are watched: none unless it is scheduled."""
        return self._hook.calls

    def close(self) -> None:
        """Lets go of the model and of everything remembered, and logs the summary; more calls do nothing."""
        if self._schedule.is_closed:
            return
        self._schedule.close()
        self._hook.detach()
        self._forget()
        all_right = all(report.passed and not why_grad_unjudged(report) for report in self.reports.values())
        log = logger.info if all_right else logger.warning
        log("%s", self.summary)

    @property
    def summary(self) -> str:
        """The outcome so far: a line, and one more for each step that is not all right."""
        checked = [*self.reports, *self.errors]
        wrong = {step: headline(report) for step, report in self.reports.items() if not report.passed}
        failed = {step: f"could not be checked: {error}" for step, error in self.errors.items()}
        first = f"gradients checked on {len(checked)} of {self._schedule.steps} training steps"
        outcome = f"{len(wrong)} wrong" if wrong else "none wrong"
        right = {step: report for step, report in self.reports.items() if step not in wrong}
        unjudged = {step: why for step, report in right.items() if (why := why_grad_unjudged(report))}
        not_judged = f", .grad not judged on {len(unjudged)}" if unjudged else ""
        lines = [f"  step {step}: {words}" for step, words in sorted({**wrong, **unjudged, **failed}.items())]
        return "\n".join([f"{first}, {outcome}{not_judged}", *lines])

    def __enter__(self) -> GradientMonitor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _await(self, first: int) -> None:
        """Waits for the next scheduled step from `first` on."""
        if self._schedule.await_step(first):
            self._hook.attach()

    def _wake_up(self, due: Due, batch: Any) -> Report | None:
        if batch is NOTHING and self._needs_batch:
            raise InvalidRequestError("step() was called without a batch: give it what this step was trained on.")
        if due is Due.BEFORE:
            self._begin_after([batch])
            return None
        self._schedule.wake_next()
        self._batches.append(batch)
        return self._finish() if len(self._batches) == self._schedule.accumulate else None

    def _begin_after(self, batches: Sequence[Any]) -> None:
        """The next call of `step` begins a scheduled step; these batches were those of the step before."""
        self._schedule.wake_next()
        self._remember(batches)
        self._hook.attach()

    def _finish(self) -> Report | None:
        """The end of a scheduled step: checks, and waits for the next."""
        step, batches = self._schedule.target, tuple(self._batches)
        try:
            report = self._checked(batches)
        except GradcheckError as error:
            self.errors[step] = error
            return self._react(step, error, None)
        else:
            self.reports[step] = report
            return self._react(step, None if report.passed else GradientMismatchError(str(report)), report)
        finally:
            self._hook.detach()
            self._forget()
            self._await(step + 1)
            if self._schedule.target == step + 1:
                self._remember(batches[-1:])

    def _react(self, step: int, error: GradcheckError | None, report: Report | None) -> Report | None:
        if error is not None and self._on_mismatch == "raise":
            raise error
        if error is not None and self._on_mismatch == "warn":
            words = headline(report) if report else str(error)
            warnings.warn(f"step {step}: {words}", GradientMismatchWarning, stacklevel=5)
        return report

    def _remember(self, batches: Sequence[Any]) -> None:
        """Keeps what a step leaves and the next, scheduled one may hold by mistake: its `.grad`, its batch."""
        theta = theta_of(self._model, self._request.include, self._request.exclude)
        self._earlier = {
            theta[at].parameter: left.values for at, left in left_gradients(theta, self._carried()).items()
        }
        self._previous = self._mean(batches)

    def _forget(self) -> None:
        self._batches, self._earlier, self._previous = [], {}, None

    def _checked(self, batches: Sequence[Any]) -> Report:
        """The model's backward, then `.grad`, on the same batches."""
        forwards = tuple(self._hook.calls)
        starts = [forward.start for forward in forwards] if len(forwards) == len(batches) else []
        report, examined = check_backward(self._model, self._mean(batches), self._request)
        step = TrainingStep(
            forwards=forwards,
            batches=len(batches),
            compiled=self._hook.model is not self._model,
            loss_scale=1.0 if self._scaler is None else self._scaler.get_scale(),
            scale=self._carried(),
            clip_norm=self._clip_norm,
            clip_value=self._clip_value,
            earlier=self._earlier,
            previous=self._previous,
        )
        request = replace(self._request, gradients="grad", mode="keep")
        in_grad = check_left_in_grad(self._model, self._mean(batches, starts), request, step, examined)
        return joined(report, in_grad)

    def _mean(self, batches: Sequence[Any], starts: Sequence[Start] = ()) -> Loss:
        """J as the mean over the batches of a step, each from its own random state."""
        return MeanLoss([self._loss(batch) for batch in batches], self._divisor, starts)

    def _carried(self) -> float:
        """The loss scale that `.grad` still carries: the scaler's, unless an optimizer's gradients were unscaled."""
        if self._scaler is None or has_unscaled(self._scaler):
            return 1.0
        return self._scaler.get_scale()
