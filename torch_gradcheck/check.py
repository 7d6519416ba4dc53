"""The check, from one end to the other: borrow, evaluate, differentiate on both sides, compare, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_gradcheck.analytic import autograd_gradients, given_gradients
from torch_gradcheck.batch import batch_loss
from torch_gradcheck.borrow import Loan
from torch_gradcheck.compare import compared_row, frozen_row, relative_error_over
from torch_gradcheck.compare_projected import projected_row
from torch_gradcheck.facts import ParameterReport
from torch_gradcheck.method import chosen_method
from torch_gradcheck.notes import notes_of
from torch_gradcheck.numerical import Numerical, Tried
from torch_gradcheck.progress import progress_bar
from torch_gradcheck.projected.trials import Projected
from torch_gradcheck.report import Report
from torch_gradcheck.request import Mode, Request, callable_argument, request
from torch_gradcheck.settle import check_unchanged, settled_objective
from torch_gradcheck.theta import ThetaEntry, theta_of

Patterns = str | Sequence[str] | None


def check_module(
    model: nn.Module,
    loss_fn: Callable[..., Any],
    batch: Any,
    *,
    gradients: Mapping[str, Any] | None = None,
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
            array: gradients derived by hand.
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
    return _check(model, [loss_fn], lambda: batch_loss(model, loss_fn, batch, dtype), asked)


def check_closure(
    model: nn.Module,
    closure: Callable[[], Any],
    *,
    gradients: Mapping[str, Any] | None = None,
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
    return _check(model, [closure], lambda: closure, asked)


def _check(
    model: nn.Module, functions: list[Callable[..., Any]], computation: Callable[[], Callable[[], Any]], asked: Request
) -> Report:
    """The pipeline. `computation` gives the function that computes the loss, once the model is lent."""
    started = time.perf_counter()
    threads = torch.get_num_threads()
    theta = theta_of(model, asked.include, asked.exclude)
    given = None if asked.gradients is None else given_gradients(asked.gradients, theta)
    with Loan(model, functions, asked.mode, asked.dtype, asked.seed) as borrowed:
        objective = settled_objective(model, computation(), borrowed, asked.dtype)
        gradients = autograd_gradients(objective, theta) if given is None else given
        numerical = Numerical(objective, theta, asked, threads)
        chosen = chosen_method(asked.method, objective, theta, numerical)
        with progress_bar(asked.progress) as bar:
            if chosen.method == "exact":
                trials = numerical.trials(gradients, bar)
            else:
                trials = Projected(objective, theta, asked, numerical, gradients, bar).trials()
        check_unchanged(objective)
        rows = [_row(entry, trials.get(position), asked) for position, entry in enumerate(theta)]
        ratio = _over_theta(trials)
    return Report(
        parameters=tuple(rows),
        relative_error=ratio,
        loss=objective.loss,
        method=chosen.method,
        evaluations=objective.evaluations,
        seconds=time.perf_counter() - started,
        tolerance=asked.tolerance,
        dtype=str(asked.dtype).removeprefix("torch."),
        mode=asked.mode,
        seed=asked.seed,
        noise=numerical.noise.sigma,
        notes=[*chosen.notes, *notes_of(rows, objective, numerical, asked, chosen.method)],
    )


def _row(entry: ThetaEntry, tried: Tried | None, asked: Request) -> ParameterReport:
    if tried is None:
        return frozen_row(entry)
    if tried.proof is None:
        return compared_row(entry, tried, asked.tolerance)
    return projected_row(entry, tried, tried.proof, asked.tolerance)


def _over_theta(trials: dict[int, Tried]) -> float:
    """Ng's ratio over the whole θ."""
    with np.errstate(all="ignore"):
        return relative_error_over((tried.analytic, tried.answer.numeric) for tried in trials.values())
