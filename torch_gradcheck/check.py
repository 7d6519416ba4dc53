"""The check, from one end to the other: borrow, evaluate, differentiate on both sides, compare, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from torch_gradcheck.against_reference.check import function_against_reference, module_against_reference
from torch_gradcheck.borrowing.assembly import assembled
from torch_gradcheck.contract.entries import contract_of
from torch_gradcheck.contract.problem_trial import ProblemTrial
from torch_gradcheck.diagnosis.by_output import told_by_output
from torch_gradcheck.errors import NonFiniteLossError
from torch_gradcheck.methods.agreement import led
from torch_gradcheck.methods.choice import METHOD_NAMES
from torch_gradcheck.methods.posing import posed
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.function_call import function_call
from torch_gradcheck.objective.function_loss import FunctionLoss, WrittenArgumentsError, model_of
from torch_gradcheck.objective.loss import ClosureLoss, Loss, MeanLoss, ModuleLoss
from torch_gradcheck.pipeline.backward import check_backward, judged
from torch_gradcheck.pipeline.provenance import with_provenance
from torch_gradcheck.processes.groups import team_of
from torch_gradcheck.reporting.progress import progress_bar
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.request import (
    Mode,
    Request,
    callable_argument,
    closure_argument,
    function_argument,
    no_reference_of_closure,
    reference_module,
    validated_request,
)
from torch_gradcheck.torch_internals.data_parallel import data_parallel_group
from torch_gradcheck.torch_internals.modules import plain_names
from torch_gradcheck.tracebacks import UsersFrames
from torch_gradcheck.training_step.check import check_left_in_grad
from torch_gradcheck.training_step.ranks.exchange import loss_of_all, step_of_all
from torch_gradcheck.training_step.ranks.window import on_mean
from torch_gradcheck.training_step.step import TrainingStep

if TYPE_CHECKING:  # a build of torch may come without it
    from torch.distributed import ProcessGroup

Patterns = str | Sequence[str] | None


def check_module(
    model: nn.Module,
    loss_fn: Callable[..., Any],
    batch: Any,
    *,
    gradients: Mapping[str, Any] | Literal["grad"] | None = None,
    method: str = "auto",
    eps: float | None = None,
    tolerance: float | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    mode: Mode = "eval",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    progress: bool | None = None,
    order: int = 1,
    perturb: float = 0.0,
    hold_detached: bool = False,
    reference: Callable[..., Any] | None = None,
    group: ProcessGroup | None = None,
) -> Report:
    """Checks the gradient of the loss for every parameter of `model`, against centered differences.

    J is the loss as a function of the parameters θ. Every entry of dθ, the gradient on trial, is compared with
    (J(θ+ε) − J(θ−ε)) / 2ε, and its relative error is ‖dθapprox − dθ‖₂ / (‖dθapprox‖₂ + ‖dθ‖₂). Everything runs in
    `dtype`. Nothing of yours changes.

    Args:
        model: the module to check.
        loss_fn: gives the scalar loss from the model's output and the targets. It may read the model's parameters.
        batch: how the model is called. A tuple or list `(inputs, *targets)`: `loss_fn(model(inputs), *targets)`, where
            inputs that are a tuple or list are `model(*inputs)`, and a mapping is `model(**inputs)`. A mapping:
            `loss_fn(model(**batch))`. Anything else: `loss_fn(model(batch))`. Tensors in it that require a gradient are
            on trial too, as rows named after their place: `batch[0]`, `batch['x']`, `batch`.
        gradients: what is on trial. None: what one backward of J leaves in `.grad`; hooks of
            `register_post_accumulate_grad_hook` do not run. A mapping from parameter name to tensor or array: gradients
            derived by hand. They may name inputs. `"grad"`: what `.grad` holds now, as a training step left it. It is
            judged by what rounding can do in the step's own precision, and the mode is then `"keep"`, unless it is
            `"train"`. If ranks train the model (DistributedDataParallel, FSDP2 or `group`), every rank calls the check,
            and J is the mean of their losses, each on its own batch.
        method: `"exact"`: differences at every coordinate. `"projected"`: differences along random directions, for
            models that are too large for that; the gradient is still compared entry by entry. `"auto"`: exact while
            that takes seconds, as estimated from the operations of J, else projected.
        eps: the step of the centered difference. None chooses one for each parameter from the measured noise of J.
        tolerance: the largest relative error that passes. None: 1e-5 in float64, 1e-3 in float32.
        include: glob pattern or list of them. Only parameters and inputs with such names are checked. Brackets stand
            for one of several characters, as in any glob, and also for themselves: `batch[0]`.
        exclude: glob pattern or list of them. Parameters and inputs with such names are not checked.
        mode: `"eval"`, `"train"` or `"keep"` (each module's own flag). In each of them the random state is the same at
            every evaluation of J.
        dtype: the precision of the check, `torch.float64` or `torch.float32`.
        seed: of everything that is drawn at random: same seed, same report.
        progress: True or False. None shows a bar only for long work, on a terminal or in a notebook.
        order: 1: the gradient of J. 2: the gradient of the slope ⟨v, ∇J(θ)⟩ for a random v, which a double backward
            gives. It is compared with differences of the first-order gradient, which is not on trial itself.
        perturb: 0.0: at the model's own θ. A positive number: at θ + perturb · s · N(0, 1), where s is the standard
            deviation of the tensor, or 1 where it is constant. Mistakes that weights of exactly 1 or 0 hide show there.
            Parameters that require a gradient move for the time of the check. Inputs stay.
        hold_detached: True: what passes through `detach()`, `.data` or `no_grad` is held at its value at θ in every
            evaluation, so that deliberate stop-gradients are right. False: it moves with θ, and a gradient that is
            lost there is a mismatch.
        reference: None, or a module that computes the same by plain operations and is known to be right. It has the
            same names of parameters, and is given their values for the check. `model` then runs as it is, in its own
            dtypes. Its outputs (rows `output`, `output[1]`, `output['logits']`) and its gradients are compared with
            those of the reference in float64, on the same inputs. Error bars for what rounding may do are measured on
            the reference. `report.reference` is the report on the reference's own gradient, to which `method`, `eps`
            and `hold_detached` belong. `include` and `exclude` do not select outputs. Not together with `gradients`,
            `order=2` or another `dtype`.
        group: None, or a `torch.distributed` process group whose ranks share the evaluations of J. Every rank calls
            the check with the same arguments, and gets the same report. An exception on one ends it on all. If the
            model is under DistributedDataParallel or FSDP2, the batches may differ, and J is the mean of the ranks'
            losses.

    Raises:
        InvalidRequestError: an argument cannot be used, or torch refuses what the model or the loss gives to it; it is
            then raised from torch's own exception. Exceptions of your own code come through as they are.
        NonScalarLossError, NonFiniteLossError, NonDeterministicLossError: a loss or a reference that cannot be checked.
    """
    step = _step_of(model, gradients)
    with (
        UsersFrames(),
        team_of(_ranks_of(model, gradients, group)).together() as team,
        assembled(model, loss_fn, batch, gradients, reference) as whole,
    ):
        request = validated_request(
            model,
            METHOD_NAMES,
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
            perturb=perturb,
            hold_detached=hold_detached,
            order=order,
            reference=reference,
            team=team,
        )
        callable_argument("loss_fn", loss_fn)
        loss = ModuleLoss(model, loss_fn, batch)
        if reference is not None:
            report = module_against_reference(loss, reference_module(reference), request)
        else:
            report = checked(model, loss, request, step)
        return whole.told(with_provenance(report, "check_module(model, loss_fn, batch)", model, request))


def check_closure(
    model: nn.Module,
    closure: Callable[[], Any],
    *,
    gradients: Mapping[str, Any] | Literal["grad"] | None = None,
    method: str = "auto",
    eps: float | None = None,
    tolerance: float | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    mode: Mode = "eval",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    progress: bool | None = None,
    order: int = 1,
    perturb: float = 0.0,
    hold_detached: bool = False,
    reference: Callable[..., Any] | None = None,
    group: ProcessGroup | None = None,
) -> Report:
    """Checks the gradients of `model` under a `closure` without arguments that returns the scalar loss.

    It is for losses that are not `loss_fn(model(inputs), *targets)`: several losses, GAN steps, regularisers,
    parameters captured in a list. If the closure calls `backward()` itself, as those of `torch.optim` do, what that
    leaves in `.grad` is on trial. Modules and tensors that the closure captures run in `dtype` too. Captured tensors
    that require a gradient and that J reads are on trial, as rows named after the variables that hold them: `x`,
    `inputs['x']`, `self.z`. Options, result and errors are those of `check_module`.
    """
    ranks = team_of(_ranks_of(model, gradients, group))
    step = _step_of(model, gradients)
    with UsersFrames(), ranks.together() as team, assembled(model, closure, gradients) as whole:
        request = validated_request(
            model,
            METHOD_NAMES,
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
            perturb=perturb,
            hold_detached=hold_detached,
            order=order,
            reference=reference,
            team=team,
        )
        callable_argument("closure", closure)
        closure_argument(closure)
        no_reference_of_closure(reference)
        report = checked(model, ClosureLoss(closure), request, step)
        return whole.told(with_provenance(report, "check_closure(model, closure)", model, request))


def _ranks_of(model: nn.Module, gradients: object, group: ProcessGroup | None) -> ProcessGroup | None:
    """The group that is given; for `.grad` of a model that is trained in data parallelism, the ranks that train it."""
    if group is not None or not isinstance(gradients, str) or not isinstance(model, nn.Module):
        return group
    ranks: ProcessGroup | None = data_parallel_group(model)
    return ranks


def _step_of(model: nn.Module, gradients: object) -> TrainingStep | None:
    """What is known of the step that left `.grad`; None where that is not on trial."""
    on_trial = isinstance(gradients, str) and isinstance(model, nn.Module)
    return TrainingStep().before_assembly(model) if on_trial else None


def check_function(
    function: Callable[..., Any],
    inputs: Sequence[Any] | Mapping[str, Any],
    *,
    order: int = 1,
    tolerance: float | None = None,
    dtype: torch.dtype = torch.float64,
    eps: float | None = None,
    seed: int = 0,
    hold_detached: bool = False,
    progress: bool | None = None,
    reference: Callable[..., Any] | None = None,
    group: ProcessGroup | None = None,
) -> Report:
    """Checks the gradients of a function of tensors under random gradients of its outputs, and its contract.

    Every differentiable output y is multiplied by random numbers v, and the sum of all is the loss: J = Σ ⟨v, y⟩.
    Outputs may be any nest of tuples, lists, mappings and dataclasses. v has random signs and sizes between ½ and 1½,
    and is divided by the size n · rms(y) of the output. Differentiable are the outputs that have a graph. If none has
    one, all outputs of floating point or complex numbers are taken, and every gradient is missing. A wrong row says
    for which output's gradient it is wrong.

    Rows are named after the arguments of the function, of `forward` without `ctx` for an `autograd.Function`: `x`,
    `tensors[0]` inside a list, `args[2]` where there is no name. `report.contract` says what else others can rely on.

    Args:
        function: a plain function, `MyFunction.apply`, an operator of `torch.library`, or a module. The parameters of a
            module are rows too, and its mode stays as it is. A bound method of a module is the module with another
            forward. A function that writes to its arguments is given copies, which are no leaves.
        inputs: a tuple or list of positional arguments, or a mapping of keyword arguments. On trial are the tensors
            that require a gradient or, where none does, all of floating point or complex numbers. Of a sparse tensor
            the values that it specifies are on trial.
        order: as in `check_module`. With 2, v depends on y as well, so that the gradients that a backward is given are
            on trial too. The contract is tried with either.
        tolerance: the largest relative error that passes. None: 1e-5 in float64, 1e-3 in float32.
        dtype: the precision of the check, `torch.float64` or `torch.float32`. Floating point and complex arguments are
            copied into it, and casts to a lower one inside the function are raised.
        eps: the step of the centered difference. None chooses one for each argument from the measured noise of J.
        seed: of v, and of everything else that is drawn at random: same seed, same report.
        hold_detached: as in `check_module`.
        progress: True or False. None shows a bar only for long work, on a terminal or in a notebook.
        reference: None, or a function of the same arguments that computes the same by plain operations and is known to
            be right. `function`, a kernel, then runs as it is, on copies of its arguments in their own dtypes, devices
            and layouts. v is rounded to the dtype of its outputs, and not divided. Its outputs (rows `output`,
            `output[1]`) and its gradients are compared with those of the reference in float64, under the same v. Error
            bars for what rounding may do are measured on the reference. The contract is tried in the kernel's own
            dtypes. `report.reference` is the report on the reference's own gradient.
        group: None, or a `torch.distributed` process group whose ranks share the evaluations of J. Every rank calls
            the check with the same arguments, and gets the same report. An exception on one ends it on all.

    Raises:
        InvalidRequestError: the function cannot be called with these arguments, or has no gradient to check.
        NonFiniteLossError, NonDeterministicLossError: J or the reference cannot be checked. An exception from the
            function itself comes through as it is; while the contract is tried it becomes an entry.
    """
    with UsersFrames(), team_of(group).together() as team, assembled(function, inputs, reference) as whole:
        function_argument(function)
        model = model_of(function)
        request = validated_request(
            model,
            METHOD_NAMES,
            eps=eps,
            tolerance=tolerance,
            mode="keep",
            dtype=dtype,
            seed=seed,
            progress=progress,
            hold_detached=hold_detached,
            order=order,
            reference=reference,
            team=team,
        )
        if reference is not None:
            report = function_against_reference(function, inputs, reference, request)
        else:
            report = _function_alone(function, inputs, model, request)
        return whole.told(with_provenance(report, "check_function(function, inputs)", function, request, inputs))


def _function_alone(function: Callable[..., Any], inputs: Any, model: nn.Module, request: Request) -> Report:
    """The check of a function by differences; of one that writes to its arguments, with copies of them."""
    loss = FunctionLoss(function_call(function, inputs), request.seed, is_bent=request.order == 2)
    try:
        return _of_function(model, loss, request)
    except WrittenArgumentsError:
        return _of_function(model, loss.on_copies(), request)
    except NonFiniteLossError as error:
        raise loss.explained(error) from error.__cause__


def _of_function(model: nn.Module, loss: FunctionLoss, request: Request) -> Report:
    """The check of J as of any other loss; then, in the same loan of J itself, what only a function can be asked."""
    started = time.perf_counter()
    report = checked(model, loss, request) if request.order == 2 else None
    if report is not None:
        loss, request = replace(loss, is_bent=False), replace(request, order=1)
    with progress_bar(request.progress) as progress, posed(model, loss, request, progress=progress) as problem:
        return led(problem, lambda: _with_contract(problem, loss, report, started))


def _with_contract(problem: Problem, loss: FunctionLoss, report: Report | None, started: float) -> Report:
    """The report of the check, made now where there is none yet, and the contract of the function."""
    if report is None:
        _run_backward(problem, loss)
        report, _ = judged(problem, started)
        report = replace(report, parameters=told_by_output(problem, loss, report.parameters))
    proven = frozenset(row.name for row in report if row.status.is_proven)
    has_mistake = report.order == 1 and bool(report.mismatches)
    contract = contract_of(ProblemTrial(loss, problem, proven, has_mistake))
    notes, seconds = [*report.notes, *loss.notes], time.perf_counter() - started
    return replace(report, notes=notes, contract=contract, seconds=seconds)


def _run_backward(problem: Problem, loss: FunctionLoss) -> None:
    """Runs the backward on trial; raises WrittenArgumentsError where it writes to arguments, past autograd too."""
    try:
        _ = problem.backward
    except Exception:  # whatever it is, it may come of arguments that have changed
        loss.refuse_written()
        raise
    loss.refuse_written()


def checked(model: nn.Module, loss: Loss, request: Request, step: TrainingStep | None = None) -> Report:
    """The check that was asked for.

    Args:
        model: the caller's, whole.
        loss: the user's loss over it.
        request: the options.
        step: what is known of the step that left `.grad`.
    """
    if isinstance(request.gradients, Mapping):
        plain = plain_names(model)
        given = {plain(str(name)): gradient for name, gradient in request.gradients.items()}
        request = replace(request, gradients=given)
    if request.gradients == "grad":
        mode: Mode = "train" if request.mode == "train" else "keep"
        request = replace(request, mode=mode)
        step = step_of_all(request, model, loss, step or TrainingStep())
        return check_left_in_grad(model, loss if step.window is None else step.window.mean(), request, step)
    loss, start = loss_of_all(request, model, loss)
    report = check_backward(model, loss, request, start)[0]
    if isinstance(loss, MeanLoss):
        report = replace(report, notes=[*report.notes, on_mean(request.team.size)])
    return _begun_with_first_order(report, model, loss, request) if request.order == 2 else report


def _begun_with_first_order(report: Report, model: nn.Module, loss: Loss, request: Request) -> Report:
    """The report of second order; where no culprit is known, with that of the first-order gradient if this is wrong."""
    if not report.mismatches or report.culprit is not None:
        return report
    first = check_backward(model, loss, replace(request, order=1))[0]
    if not first.mismatches:
        return report
    new = [f"by a check of order=1, {note}" for note in first.notes[:2] if note not in report.notes]
    notes = [*report.notes[:1], *new[:1], *report.notes[1:]]
    return replace(report, culprit=first.culprit, place=first.place, notes=notes)
