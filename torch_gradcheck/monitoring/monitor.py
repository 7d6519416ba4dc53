"""Checks a model's gradients from inside its training script, on the steps that are asked for, and leaves no trace."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from torch_gradcheck.check import Patterns
from torch_gradcheck.errors import (
    GradcheckError,
    GradientMismatchError,
    GradientMismatchWarning,
    InvalidRequestError,
)
from torch_gradcheck.methods.choice import METHOD_NAMES
from torch_gradcheck.monitoring.flow_plot import flow_plot
from torch_gradcheck.monitoring.forward_hook import ForwardHook
from torch_gradcheck.monitoring.history import GradientHistory
from torch_gradcheck.monitoring.observations import Observation, observed
from torch_gradcheck.monitoring.recorder import Recorder
from torch_gradcheck.monitoring.schedule import Due, Schedule
from torch_gradcheck.monitoring.scheduled_step import Declared, ScheduledStep
from torch_gradcheck.monitoring.summary import never_came, summary_of, unfinished, wrong_in_words
from torch_gradcheck.objective.loss import NOTHING, ClosureLoss, ModuleLoss
from torch_gradcheck.processes.groups import team_of
from torch_gradcheck.reporting.render.encodable import encodable
from torch_gradcheck.reporting.render.terminal import page_of
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.request import Mode, callable_argument, one_of, positive_number, validated_request
from torch_gradcheck.torch_internals.data_parallel import data_parallel_group, without_parallel
from torch_gradcheck.torch_internals.modules import uncompiled
from torch_gradcheck.tracebacks import UsersFrames
from torch_gradcheck.training_step.forward_state import SeenForward

if TYPE_CHECKING:  # neither has to be there
    from matplotlib.figure import Figure
    from torch.distributed import ProcessGroup

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

    The run with the monitor is bit for bit the run without it. Without `with`, `close()` does what leaving the block
    does.

    A step that draws random numbers (dropout) can be judged because a hook on the model keeps the random state and the
    buffers with which its forward began. The hook is there on scheduled steps only.

    Tensors of the batch that require a gradient are on trial too, and so is the `.grad` that the loop has left on them.
    Their rows are `batch[0]`, or `batches[1][0]` where a step has several batches. Nobody has to zero the `.grad` of an
    input: what it held when the forward began is not judged, and a note says so.

    Args:
        model: the model that is trained. If it is compiled, the compiled backward is on trial.
        loss_fn: as in `check_module`.
        at: the steps that are checked, counted from 0. A missing `zero_grad()` shows from step 1 on.
        every: with 1000, steps 0, 1000, 2000, ... are checked too.
        on_mismatch: what a wrong gradient does: `"raise"` a GradientMismatchError from `step`, `"warn"` with a
            GradientMismatchWarning, or `"record"` it. What cannot be checked (a loss that is NaN) is treated alike.
        accumulate: how many batches are accumulated before each optimizer step. Call `step` after each backward; the
            batches of one optimizer step count as one step. Its J is Σ wᵢ Jᵢ / Σ wᵢ, where Jᵢ is the loss of a batch
            and wᵢ the `weight` that `step` is given with it, 1 by default.
        clip_norm, clip_value: the loop has clipped `.grad` to this norm, or value, when it calls `step`.
        scaler: a `torch.amp.GradScaler` whose scale `.grad` carries, if the loop calls `step` before `unscale_`. Where
            that scale overflows, the scaler skips the step: such entries of `.grad` are undecided, and not wrong.
        method, eps, tolerance, include, exclude, mode, dtype, seed, progress, hold_detached: as in `check_module`. The
            `mode` is that of the model's check; `.grad` is judged in the mode the loop trains in. There is no
            `perturb`, since what the loop left in `.grad` belongs to its own θ.
        group: the ranks of a `torch.distributed` process group that each train on batches of their own and average
            their gradients. None: those of the model, if it is under DistributedDataParallel or FSDP2. J is then the
            mean of the losses of all ranks, weighted where their batches are. Every rank has a monitor with the same
            schedule, and gets the same reports. The ranks send each other their batches on scheduled steps.
        log: where the figures of each checked step are written, under the names of docs/guide/history.md. A function of
            `(values, step)`, such as `wandb.log`; a SummaryWriter of TensorBoard, or another object with
            `add_scalar(name, value, step)`; or a logger of Lightning. Of several ranks the first one writes.

    Attributes:
        reports: step → its report.
        errors: step → why it could not be checked.
        history: for each step that was checked and each parameter a `GradientRecord`: the norm of `.grad`, the share of
            zeros in it, how far the optimizer then moved the weights, and more; see `GradientHistory`.
        observations: gradients that vanish, explode or reach nothing, each with its layers; they change no verdict.
        summary: the outcome in lines: steps that are wrong, that could not be checked, or on which nothing was proven;
            steps that were scheduled and never came; and the observations.

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
        tolerance: float | None = None,
        include: Patterns = None,
        exclude: Patterns = None,
        mode: Mode = "eval",
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        progress: bool | None = None,
        hold_detached: bool = False,
        group: ProcessGroup | None = None,
        log: Any = None,
    ) -> None:
        with UsersFrames():
            is_module = isinstance(model, nn.Module)
            team = team_of(data_parallel_group(model) if group is None and is_module else group)
            self._request = validated_request(
                model,
                METHOD_NAMES,
                method=method,
                eps=eps,
                tolerance=tolerance,
                include=include,
                exclude=exclude,
                mode=mode,
                dtype=dtype,
                seed=seed,
                progress=progress,
                hold_detached=hold_detached,
                team=team,
            )
            callable_argument("loss_fn", loss_fn)
            _check_scaler(scaler)
            self._model = uncompiled(model)
            self._needs_batch, self._is_scaled = True, scaler is not None
            self._on_mismatch = one_of("on_mismatch", on_mismatch, ("raise", "warn", "record"))
            self._schedule = Schedule(at, every, accumulate)
            declared = Declared(
                compiled=self._model is not model,
                accumulate=self._schedule.accumulate,
                clip_norm=None if clip_norm is None else positive_number("clip_norm", clip_norm),
                clip_value=None if clip_value is None else positive_number("clip_value", clip_value),
                scaler=scaler,
            )
            self._hook = ForwardHook(model if data_parallel_group(model) is None else without_parallel(model))
            loss = partial(ModuleLoss, model, loss_fn)
            self._under_way = ScheduledStep(self._model, loss, self._request, declared, self._hook)
            self._recorder = Recorder(self._request, log)
            self.reports: dict[int, Report] = {}
            self.errors: dict[int, GradcheckError] = {}
            self._ended: dict[int, str] = {}
            self._arrived = 0
            self._await(0)

    @classmethod
    def of_closure(cls, model: nn.Module, closure: Callable[..., Any], **options: Any) -> GradientMonitor:
        """A monitor of a loss that is not `loss_fn(model(inputs), *targets)`.

        `step(batch)` then takes `closure(batch)` for the loss, and `step()` takes `closure()`, as `check_closure` does.
        Options are those of the class. Call `watch()` where the forward begins, if the step is random.
        """
        with UsersFrames():
            callable_argument("closure", closure)
        monitor = cls(model, closure, **options)
        monitor._under_way.loss, monitor._needs_batch = partial(ClosureLoss, closure), False
        return monitor

    def watch(self) -> AbstractContextManager[None]:
        """Says that a forward begins here, where the model is not called as a whole: `with monitor.watch(): ...`.

        Enter it within autocast, once for each batch. Where the loop calls the model itself, `watch` is not needed.
        """
        if self._hook.attached:
            self._hook.note_now()
        return nullcontext()

    def step(self, batch: Any = NOTHING, *, weight: Any = None, last: bool = False) -> Report | None:
        """After the backward and before the optimizer's step: checks, if this step is scheduled.

        Args:
            batch: what this step trained on, as `check_module` takes it.
            weight: what this batch counts in the window that is accumulated: the number of tokens or samples that its
                loss is the mean over. A positive number or a tensor of one; None: all batches count the same.
            last: the window ends with this batch, although fewer than `accumulate` have come.

        Returns:
            The report of a scheduled step, else None. A row is that of the model's backward, or that of `.grad` where
            only `.grad` is wrong, or undecided because a loss scale overflowed; `report.in_grad` is the whole report on
            `.grad`.

        Raises:
            GradientMismatchError: a gradient is wrong, and `on_mismatch` is `"raise"`.
            GradcheckError: this step cannot be checked, and `on_mismatch` is `"raise"`.
            InvalidRequestError: there is no batch, or the weight is no positive number, on a step that is scheduled.
        """
        due = self._schedule.called(last)
        if due is None:
            return None
        with UsersFrames():
            return self._wake_up(due, batch, weight, last)

    def step_over(
        self,
        batches: Callable[[], Sequence[Any]],
        divisor: float | None = None,
        weights: Callable[[], Sequence[float]] = list,
    ) -> Report | None:
        """`step` for trainers: one optimizer step over several batches, which are asked for when it is scheduled.

        J is their sum, each times its weight (1 where there are none), divided by `divisor`; None: by that of the
        weights.
        """
        due = self._schedule.called()
        if due is None or not self._goes_on_behind_the_update(due):
            return None
        seen, step = list(batches()), self._under_way
        step.divisor = divisor
        if due is Due.WITHIN:
            step.batches, step.weights = seen, list(weights())
            with UsersFrames():
                return self._finish()
        self._begin_after(seen)
        return None

    @property
    def seen(self) -> list[SeenForward]:
        """The forwards of the step under way, as far as they are watched: none unless it is scheduled."""
        return self._hook.calls

    def close(self) -> None:
        """Ends the monitor and logs the summary; calling it again does nothing."""
        if self._schedule.is_closed:
            return
        self._schedule.close()
        self._hook.detach()
        self._arrived = len(self._under_way.batches)
        self._under_way.forget()
        self._recorder.note_update(self._model, last=True)
        self._recorder.write_update()
        if not self._request.team.leads:
            return
        summary = self.summary
        log = logger.warning if "\n" in summary else logger.info
        log("%s", summary)

    @property
    def summary(self) -> str:
        """The outcome so far: a line, and one more for each step that is not all right."""
        besides = [*self._missed(), *[each.message for each in self.observations]]
        summary = summary_of(self._schedule.steps, self.reports, self.errors, besides)
        return encodable(summary, page_of(sys.stdout).encoding)

    @property
    def history(self) -> GradientHistory:
        """What `.grad` and the weights of each parameter were on the steps that were checked, as far as it is known."""
        return self._recorder.history

    @property
    def observations(self) -> list[Observation]:
        """Gradients that vanish, explode or reach nothing, by the history so far; they change no verdict."""
        return observed(self.history, scaled=self._is_scaled)

    def plot(self) -> Figure:
        """The flow of gradients through the layers over the checked steps, as a matplotlib figure.

        Above the norm of each layer's gradients, below how far its weights moved relative to their norm; a line for
        each step. `savefig` writes it; a notebook shows it. The extra `plot` brings matplotlib.

        Raises:
            InvalidRequestError: there is no gradient to plot yet.
            MissingMatplotlibError: matplotlib is not installed; an ImportError, too.
        """
        return flow_plot(self.history)

    def _missed(self) -> list[str]:
        """Lines on scheduled steps that were not checked."""
        over, target = self._schedule.is_closed, self._schedule.target
        arrived = self._arrived if over else len(self._under_way.batches)
        known = {*self.reports, *self.errors, *self._ended, *([target] if arrived else [])}
        lines = [f"step {step}: its check was ended by {name}" for step, name in self._ended.items()]
        if arrived:
            lines.append(unfinished(target, arrived, self._schedule.accumulate, over))
        never = never_came(self._schedule.never_reached(known), over)
        return [*lines, never] if never else lines

    def __enter__(self) -> GradientMonitor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _await(self, first: int) -> None:
        """Waits for the next scheduled step from `first` on."""
        if self._schedule.await_step(first):
            self._hook.attach()

    def _wake_up(self, due: Due, batch: Any, weight: Any, last: bool) -> Report | None:
        if not self._goes_on_behind_the_update(due):
            return None
        if batch is NOTHING and self._needs_batch:
            raise InvalidRequestError("step() was called without a batch: give it what this step was trained on.")
        if due is Due.BEFORE:
            self._begin_after([batch])
            return None
        self._schedule.wake_next()
        self._under_way.add(batch, weight)
        return self._finish() if last or len(self._under_way.batches) == self._schedule.accumulate else None

    def _goes_on_behind_the_update(self, due: Due) -> bool:
        """Measures the update of the step before; whether this call is for anything else."""
        self._recorder.note_update(self._model)
        if due is Due.AFTER:
            self._recorder.write_update()
        return due is not Due.AFTER

    def _begin_after(self, batches: Sequence[Any]) -> None:
        """The next call of `step` begins a scheduled step; these batches were those of the step before."""
        self._schedule.wake_next()
        self._under_way.remember(batches)
        self._hook.attach()
        self._recorder.write_update()

    def _finish(self) -> Report | None:
        """The end of a scheduled step: checks, and waits for the next."""
        step, under_way = self._schedule.target, self._under_way
        batches = list(under_way.batches)
        try:
            self._recorder.write_update()
            report = under_way.checked(self._recorder, step)
        except GradcheckError as error:
            self.errors[step] = error
            self._recorder.note_check(step, None)
            return self._react(step, error, None)
        except BaseException as error:
            self._ended[step] = type(error).__name__
            raise
        else:
            self.reports[step] = report
            self._recorder.note_check(step, report)
            return self._react(step, GradientMismatchError(report.text()) if report.mismatches else None, report)
        finally:
            self._hook.detach()
            under_way.forget()
            self._await(step + 1)
            if self._schedule.target == step + 1:
                under_way.remember(batches[-1:])
            if self._recorder.awaits_update:
                self._schedule.wake_next()

    def _react(self, step: int, error: GradcheckError | None, report: Report | None) -> Report | None:
        if error is not None and self._on_mismatch == "raise":
            raise error
        if error is not None and self._on_mismatch == "warn":
            words = str(error) if report is None else wrong_in_words(report)
            warnings.warn(f"step {step}: {words}", GradientMismatchWarning, stacklevel=5)
        return report


def _check_scaler(scaler: object) -> None:
    if scaler is not None and not hasattr(scaler, "get_scale"):
        raise InvalidRequestError(f"scaler must be a torch.amp.GradScaler, got {type(scaler).__name__} {scaler!r}.")
