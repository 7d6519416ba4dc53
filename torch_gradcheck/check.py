"""The check, from one end to the other: borrow, evaluate, differentiate on both sides, compare, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from torch_gradcheck.borrowing.captures import captures_of
from torch_gradcheck.borrowing.loan import Loan
from torch_gradcheck.diagnosis.findings import findings_of
from torch_gradcheck.gradients.by_autograd import autograd_gradients
from torch_gradcheck.gradients.by_hand import given_gradients
from torch_gradcheck.methods.choice import run_method
from torch_gradcheck.methods.problem import Numerical
from torch_gradcheck.methods.projected.rows import tried_row
from torch_gradcheck.methods.summary import notes_of, reported
from torch_gradcheck.objective.loss import Computation, batch_loss
from torch_gradcheck.objective.preflight import check_unchanged, preflighted
from torch_gradcheck.objective.theta import ThetaEntry, theta_of
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.reporting.progress import progress_bar
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.request import Mode, Request, callable_argument, closure_argument, request
from torch_gradcheck.training_step.check import Examination, check_left_in_grad
from torch_gradcheck.training_step.step import TrainingStep
from torch_gradcheck.verdicts.rows import excused, frozen_row, over_theta
from torch_gradcheck.verdicts.trial import ParameterTrial

Patterns = str | Sequence[str] | None


def check_module(
    model: nn.Module,
    loss_fn: Callable[..., Any],
    batch: Any,
    *,
    gradients: Mapping[str, Any] | Literal["grad"] | None = None,
    method: str = "auto",
    eps: float | None = None,
    tolerance: float = 1e-5,
    include: Patterns = None,
    exclude: Patterns = None,
    mode: Mode = "eval",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Checks the gradients of `model` under `loss_fn` on `batch` against centered differences.

    The method of Andrew Ng's lecture: every entry of dθ is compared with (J(θ+ε) − J(θ−ε)) / 2ε, and judged by
    ‖dθapprox − dθ‖₂ / (‖dθapprox‖₂ + ‖dθ‖₂). Everything runs in `dtype`; nothing of the caller's changes.

    Args:
        model: what is checked.
        loss_fn: gives the scalar loss from the model's output (and the targets); may read the model's parameters.
        batch: how the model is called. A tuple or list `(inputs, *targets)`: `loss_fn(model(inputs), *targets)`, inputs
            that are a tuple or list being positional arguments and a mapping keyword arguments. A mapping:
            `loss_fn(model(**batch))`. Anything else: `loss_fn(model(batch))`.
        gradients: what is on trial. None: one autograd backward of J. A mapping from parameter name to tensor or
            array: gradients derived by hand. `"grad"`: what the parameters' `.grad` holds now, as a training step left
            it, judged by what rounding can do in the step's own precision; the mode is then `"keep"`, unless `"train"`.
        method: `"exact"`: centered differences on every coordinate. `"projected"`: along random directions, which
            verify a gradient that is compared entry by entry, for models too large for that. `"auto"`: exact while it
            takes seconds, as the operations of J let expect, else projected.
        eps: the step of the centered difference; None chooses one per parameter from the measured noise of J.
        tolerance: the largest relative error that passes.
        include: glob pattern or list of them, on parameter names: only these are checked.
        exclude: the same: these are not.
        mode: `"eval"`, `"train"` or `"keep"` (each module's own flag). The random state is the same at every
            evaluation of J in each of them.
        dtype: the precision of the check, `torch.float64` or `torch.float32`.
        seed: of everything that is drawn at random: same seed, same report.
        progress: True or False; None shows a bar only for long work on a terminal.

    Raises:
        InvalidRequestError: an argument that cannot be used.
        NonScalarLossError, NonFiniteLossError, NonDeterministicLossError: a loss that cannot be checked.
    """
    asked = request(
        model,
        gradients=gradients,
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
    own = captures_of(batch).generators.values()  # the batch itself is copied, by the computation
    return checked(model, [loss_fn, *own], lambda precision: batch_loss(model, loss_fn, batch, precision), asked)


def check_closure(
    model: nn.Module,
    closure: Callable[[], Any],
    *,
    gradients: Mapping[str, Any] | Literal["grad"] | None = None,
    method: str = "auto",
    eps: float | None = None,
    tolerance: float = 1e-5,
    include: Patterns = None,
    exclude: Patterns = None,
    mode: Mode = "eval",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Checks the gradients of `model` under a zero-argument `closure` that returns the scalar loss.

    For every shape that `check_module` has no words for: several losses, GAN steps, regularisers, parameters captured
    in a list. A closure that calls `backward()` itself, as those of `torch.optim` do, is judged by what that leaves in
    `.grad`. Modules and tensors that the closure captures are lent in `dtype` too. Options, result and errors are those
    of `check_module`.
    """
    asked = request(
        model,
        gradients=gradients,
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
    callable_argument("closure", closure)
    closure_argument(closure)
    return checked(model, [closure], lambda _: closure, asked)


def checked(model: nn.Module, functions: list[Any], computation: Computation, asked: Request) -> Report:
    """The check that was asked for. `computation` gives the function that computes the loss, once the model is lent."""
    if asked.gradients == "grad":
        mode: Mode = "train" if asked.mode == "train" else "keep"
        return check_left_in_grad(model, functions, computation, replace(asked, mode=mode), TrainingStep())
    return check_backward(model, functions, computation, asked)[0]


def check_backward(
    model: nn.Module, functions: list[Any], computation: Computation, asked: Request
) -> tuple[Report, Examination]:
    """The pipeline; also hands on what it examined, for another check of the same J.

    Args:
        model: what is checked.
        functions: what is called to compute J, and whatever else is to be lent or set aside.
        computation: gives the function that computes the loss, once the model is lent.
        asked: the options.
    """
    started = time.perf_counter()
    threads = torch.get_num_threads()
    theta = theta_of(model, asked.include, asked.exclude)
    given = asked.gradients if isinstance(asked.gradients, Mapping) else None
    if given is not None:
        given_gradients(given, theta)  # raises before anything is lent
    with Loan(model, functions, asked.mode, asked.dtype, asked.seed) as borrowed:
        theta = theta_of(model, asked.include, asked.exclude)  # a model's own train() and eval() may freeze and thaw
        objective = preflighted(model, computation(asked.dtype), borrowed, asked.dtype)
        gradients = autograd_gradients(objective, theta) if given is None else given_gradients(given, theta)
        numerical = Numerical(objective, theta, asked, threads)
        with progress_bar(asked.progress) as bar:
            chosen, trials = run_method(objective, theta, asked, numerical, gradients, bar)
        check_unchanged(objective)
        rows = [_row(entry, trials.get(position), asked) for position, entry in enumerate(theta)]
        rows = excused(rows, objective, theta)
        found = findings_of(rows, objective, theta, numerical, trials, asked.tolerance, given=given is not None)
        ratio = over_theta(trials.values())
        notes = notes_of(rows, objective, numerical, asked, chosen.method)
    report = reported(
        found.rows,
        objective,
        numerical,
        asked,
        method=chosen.method,
        started=started,
        relative_error=ratio,
        notes=[*found.notes, *chosen.notes, *notes],
        culprit=found.culprit,
    )
    return report, Examination(objective.loss, gradients, chosen, trials)


def _row(entry: ThetaEntry, tried: ParameterTrial | None, asked: Request) -> ParameterReport:
    return frozen_row(entry) if tried is None else tried_row(entry, tried, asked.tolerance)
