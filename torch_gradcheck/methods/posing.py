"""Poses the problem of a check: its model is lent, and taken back when the block is left."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from torch_gradcheck.borrowing.loan import Borrowed, Loan, Start
from torch_gradcheck.gradients.by_hand import check_names
from torch_gradcheck.methods.on_trial import variables_on_trial
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.loss import Loss
from torch_gradcheck.objective.perturbed_theta import move_theta
from torch_gradcheck.objective.theta import Theta, check_selection, matches
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.precision.mode import DrawnIn
from torch_gradcheck.reporting.progress import SILENT, ProgressBar
from torch_gradcheck.request import Request


def posed(
    model: nn.Module,
    loss: Loss,
    request: Request,
    *,
    progress: ProgressBar = SILENT,
    start: Start | None = None,
    theta: Theta | None = None,
    drawn_in: DrawnIn | None = None,
) -> Loan[Problem]:
    """Lends the model for `with posed(...) as problem:`; takes it back bit for bit when the block is left.

    Args:
        model: what is checked.
        loss: the user's loss over it.
        request: the options.
        progress: told of every evaluation of J.
        start: what evaluations of J start from; None: the seed, and what the model holds now.
        theta: θ, where it was made before; None makes it from the lent model.
        drawn_in: the precisions of random draws; None: that of the check.

    Raises:
        InvalidRequestError: nothing can be checked: no parameters, a pattern that matches nothing, meta tensors ...
    """
    selected = check_selection(model, request.include, request.exclude, variables_on_trial(loss, request))
    if isinstance(request.gradients, Mapping):
        others = [name for each in loss.variables for name in each.names if not matches(each.names, request.exclude)]
        check_names(request.gradients, [names for _, names in selected], others)
    threads = torch.get_num_threads()  # the loan may set it to 1

    def problem(borrowed: Borrowed) -> Problem:
        if request.perturb:
            move_theta(model, request.perturb, request.seed)
            borrowed.take_for_first()
        return Problem(model, loss, borrowed, request, threads, progress, theta, drawn_in)

    return Loan(
        model, loss.holders, request.mode, request.dtype, request.seed, problem, start, objects_of(loss.variables)
    )
