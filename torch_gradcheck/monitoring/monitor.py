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
from torch.amp.grad_scaler import OptState

from torch_gradcheck.arrays import Floats
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.check import Patterns, check_backward
from torch_gradcheck.errors import GradcheckError, GradientMismatchError, GradientMismatchWarning, InvalidRequestError
from torch_gradcheck.gradients.left_in_grad import left_gradients
from torch_gradcheck.monitoring.forward_hook import ForwardHook
from torch_gradcheck.monitoring.joined import joined, unjudged
from torch_gradcheck.objective.loss import NOTHING, Computation, batch_loss, closure_loss
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.reporting.render.outline import headline
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.request import Mode, callable_argument, count, one_of, positive_number, request
from torch_gradcheck.training_step.check import check_left_in_grad
from torch_gradcheck.training_step.forward_state import SeenForward
from torch_gradcheck.training_step.step import TrainingStep

logger = logging.getLogger("torch_gradcheck")

Loss = partial[Callable[[], Any]]
"""From a batch and a precision to J as a function of nothing."""

OnMismatch = Literal["raise", "warn", "record"]

NEVER = 2**62
"""A step, or a call, that no training comes to ..."""

CLOSED = -1
"""... and one that is over."""


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
        model: what is trained. A compiled model is checked as the module it was made from.
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
        self._asked = request(
            model,
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
        self._model: nn.Module = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        if scaler is not None and not hasattr(scaler, "get_scale"):
            raise InvalidRequestError(f"scaler must be a torch.amp.GradScaler, got {type(scaler).__name__} {scaler!r}.")
        self._loss_fn, self._scaler = loss_fn, scaler
        self._loss: Loss = partial(batch_loss, self._model, loss_fn)
        self._accumulate = self._divisor = count("accumulate", accumulate, at_least=1)
        self._on_mismatch = one_of("on_mismatch", on_mismatch, ("raise", "warn", "record"))
        self._clip_norm = None if clip_norm is None else positive_number("clip_norm", clip_norm)
        self._clip_value = None if clip_value is None else positive_number("clip_value", clip_value)
        self._at = _steps(at)
        self._every = None if every is None else count("every", every, at_least=1)
        self.reports: dict[int, Report] = {}
        self.errors: dict[int, GradcheckError] = {}
        self._hook = ForwardHook(model)
        self._batches: list[Any] = []
        self._earlier: dict[nn.Parameter, Floats] = {}
        self._previous: Computation | None = None
        self._call = self._wake = 0
        self._await(0)

    @classmethod
    def of_closure(cls, model: nn.Module, closure: Callable[..., Any], **options: Any) -> GradientMonitor:
        """A monitor of a loss that `loss_fn(model(inputs), *targets)` has no words for.

        `step(batch)` then takes `closure(batch)` for the loss, and `step()` takes `closure()`, as `check_closure` does.
        Options are those of the class. Call `watch()` where the forward begins, if the step is random.
        """
        callable_argument("closure", closure)
        monitor = cls(model, closure, **options)
        monitor._loss = partial(closure_loss, closure)
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
        call = self._call
        self._call = call + 1
        if call != self._wake:
            return None
        return self._wake_up(call, batch)

    def step_over(self, batches: Callable[[], Sequence[Any]], divisor: int | None = None) -> Report | None:
        """`step` for trainers: one optimizer step over several batches, which are asked for when it is scheduled.

        J is the sum over them divided by `divisor`; None: by their number.
        """
        call = self._call
        self._call = call + 1
        if call != self._wake:
            return None
        self._batches = list(batches())
        self._divisor = divisor or len(self._batches)
        if call >= self._target:
            return self._finish()
        self._wake = call + 1
        self._remember(self._batches)
        self._batches = []
        self._hook.attach()
        return None

    @property
    def seen(self) -> list[SeenForward]:
        """The forwards of the step under way, as far as they are watched: none unless it is scheduled."""
        return self._hook.calls

    def close(self) -> None:
        """Lets go of the model and of everything remembered, and logs the summary; more calls do nothing."""
        if self._wake == CLOSED:
            return
        self._wake = CLOSED
        self._hook.detach()
        self._forget()
        all_right = all(report.passed and not unjudged(report) for report in self.reports.values())
        log = logger.info if all_right else logger.warning
        log("%s", self.summary)

    @property
    def summary(self) -> str:
        """What was found so far: a line, and one more for each step that is not all right."""
        checked = [*self.reports, *self.errors]
        wrong = {step: headline(report) for step, report in self.reports.items() if not report.passed}
        failed = {step: f"could not be checked: {error}" for step, error in self.errors.items()}
        first = f"gradients checked on {len(checked)} of {self._call // self._accumulate} training steps"
        outcome = f"{len(wrong)} wrong" if wrong else "none wrong"
        right = {step: report for step, report in self.reports.items() if step not in wrong}
        unjudged = {step: why for step, report in right.items() if (why := unjudged(report))}
        not_judged = f", .grad not judged on {len(unjudged)}" if unjudged else ""
        lines = [f"  step {step}: {words}" for step, words in sorted({**wrong, **unjudged, **failed}.items())]
        return "\n".join([f"{first}, {outcome}{not_judged}", *lines])

    def __enter__(self) -> GradientMonitor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- the schedule, in calls of `step` --------------------------------------------------------------------------

    def _await(self, first: int) -> None:
        """Waits for the next scheduled step from `first` on: wakes up one call before it begins."""
        later = [step for step in self._at if step >= first]
        if self._every is not None:
            later.append(-(-first // self._every) * self._every)
        self._target = min(later, default=NEVER)
        begins = self._target * self._accumulate
        self._wake = begins if begins <= self._call else begins - 1
        if begins == self._call:
            self._hook.attach()

    def _wake_up(self, call: int, batch: Any) -> Report | None:
        if batch is NOTHING and self._loss.func is batch_loss:
            raise InvalidRequestError("step() was called without a batch: give it what this step was trained on.")
        begins = self._target * self._accumulate
        self._wake = call + 1
        if call < begins:
            self._remember([batch])
            self._hook.attach()
            return None
        self._batches.append(batch)
        return self._finish() if len(self._batches) == self._accumulate else None

    def _finish(self) -> Report | None:
        """The end of a scheduled step: checks, and waits for the next."""
        step, batches = self._target, tuple(self._batches)
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
            if self._target == step + 1:
                self._remember(batches[-1:])

    def _react(self, step: int, error: GradcheckError | None, report: Report | None) -> Report | None:
        if error is not None and self._on_mismatch == "raise":
            raise error
        if error is not None and self._on_mismatch == "warn":
            words = headline(report) if report else str(error)
            warnings.warn(f"step {step}: {words}", GradientMismatchWarning, stacklevel=5)
        return report

    def _remember(self, batches: Sequence[Any]) -> None:
        """What a step leaves that the next one, which is scheduled, may hold by mistake."""
        theta = theta_of(self._model, self._asked.include, self._asked.exclude)
        self._earlier = {
            theta[at].parameter: left.values for at, left in left_gradients(theta, self._carried()).items()
        }
        self._previous = self._computation(batches, [])

    def _forget(self) -> None:
        self._batches, self._earlier, self._previous = [], {}, None

    # --- the check -------------------------------------------------------------------------------------------------

    def _checked(self, batches: Sequence[Any]) -> Report:
        """The model's backward, then `.grad`, on the same batches."""
        forwards = tuple(self._hook.calls)
        starts = [forward.start for forward in forwards] if len(forwards) == len(batches) else []
        functions = [self._loss_fn]
        computation = self._computation(batches, [])
        report, examined = check_backward(self._model, functions, computation, self._asked)
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
        left = replace(self._asked, gradients="grad", mode="keep")
        replayed = self._computation(batches, starts)
        return joined(report, check_left_in_grad(self._model, functions, replayed, left, step, examined))

    def _computation(self, batches: Sequence[Any], starts: Sequence[Start]) -> Computation:
        """J as the mean over the batches of a step, each from its own random state."""
        divisor = self._divisor

        def computation(precision: torch.dtype | None) -> Callable[[], Any]:
            losses = [self._loss(batch, precision) for batch in batches]

            def mean() -> Any:
                total: Any = 0
                for position, loss in enumerate(losses):
                    if position and starts:
                        starts[position].random.restore()
                    total = total + loss()
                return total / divisor

            return losses[0] if len(losses) == divisor == 1 else mean

        return computation

    def _carried(self) -> float:
        """The loss scale that `.grad` still carries: the scaler's, unless an optimizer's gradients were unscaled."""
        if self._scaler is None:
            return 1.0
        stages = [state["stage"] for state in self._scaler._per_optimizer_states.values()]
        return 1.0 if OptState.UNSCALED in stages else self._scaler.get_scale()


def _steps(at: Any) -> frozenset[int]:
    """The steps that `at` names."""
    if isinstance(at, str) or not isinstance(at, int | Iterable):
        raise InvalidRequestError(f"at must be a step or several, counted from 0 (at=() for none), got {at!r}.")
    return frozenset(count("at", step, at_least=0) for step in ([at] if isinstance(at, int) else at))
