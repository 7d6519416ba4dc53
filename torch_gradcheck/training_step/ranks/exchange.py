"""The training step of all ranks, each of which sends the others what it ran: one window of all their batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.loss import ClosureLoss, Loss, MeanLoss, ModuleLoss
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.processes.team import Team
from torch_gradcheck.request import Request
from torch_gradcheck.torch_internals.data_parallel import data_parallel_group, without_parallel
from torch_gradcheck.torch_internals.modules import keeps_statistics, named_buffers, named_modules
from torch_gradcheck.training_step.forward_state import SeenForward
from torch_gradcheck.training_step.ranks.replicas import refuse_drifted, that_differ
from torch_gradcheck.training_step.ranks.sent import SentBatch, SentForward
from torch_gradcheck.training_step.ranks.window import WindowOfRanks
from torch_gradcheck.training_step.step import TrainingStep
from torch_gradcheck.training_step.window import Window

Numbers = Mapping[torch.Tensor, torch.Tensor]
"""A tensor → the numbers that it holds on the leader."""


@dataclass(frozen=True)
class _SentStep:
    """The step of one rank."""

    batches: Sequence[SentBatch]
    weights: Sequence[float]
    divisor: float
    forwards: Sequence[SentForward] | None
    changed: Sequence[str]
    previous: Sequence[SentBatch]
    moved: str


class _Here(NamedTuple):
    """What this rank has to receive the others' steps with."""

    model: nn.Module
    loss: Loss
    device: torch.device


def step_of_all(request: Request, model: nn.Module, loss: Loss, step: TrainingStep) -> TrainingStep:
    """The step of all ranks as one, its window over the batches of all of them; the step as it is where it is alone.

    Collective. J of the step is the mean of the ranks' losses, whatever the sizes of their batches, or the mean of all
    batches by the weights that were given with them.

    Args:
        request: its team are the ranks.
        model: this rank's.
        loss: on this rank's batch, or on the first of its window.
        step: of this rank.

    Raises:
        InvalidRequestError: a batch that cannot be sent, weights on some ranks only, or a closure that takes no batch.
        UnequalRanksError: the ranks' parameters differ.
    """
    team = request.team
    if team.size == 1:
        return step
    parameters = refuse_drifted(team, theta_of(model, request.include, request.exclude))
    refuse_own_closures(loss)
    window = step.window or Window([loss], (), 1.0, 1)
    sent = team.exchanged(_sent(model, step, window))
    inside = replace(loss, model=without_parallel(loss.model)) if isinstance(loss, ModuleLoss) else loss
    here = _Here(model, inside, _device_of(model))
    merged = _window(sent, window.accumulate, here)
    moved = [f"on rank {rank}, {each.moved}" for rank, each in enumerate(sent) if each.moved]
    return replace(
        step,
        forwards=_at(parameters, _forwards(sent, model)),
        batches=len(merged.losses),
        previous=_previous(sent, here) if step.previous is not None else None,
        window=merged,
        buffers=_of_leader(team, model, parameters),
        moved=moved[0] if moved else "",
    )


def loss_of_all(request: Request, model: nn.Module, loss: Loss) -> tuple[Loss, Start | None]:
    """J of a check that ranks share, and what its evaluations start from: the leader's buffers, and its last bits.

    Where the model is trained in data parallelism and the ranks hold different batches, J is the mean of their losses;
    else it is what this rank was given. Collective in that case.
    """
    if request.team.size == 1 or data_parallel_group(model) is None or not isinstance(loss, ModuleLoss):
        return loss, None
    parameters = refuse_drifted(request.team, theta_of(model, request.include, request.exclude))
    start = _of_leader(request.team, model, parameters)
    batch = SentBatch.of(loss)
    sent = request.team.exchanged((batch.digest, batch))
    if len({digest for digest, _ in sent}) == 1:
        return loss, start
    inside = replace(loss, model=without_parallel(loss.model))
    return MeanLoss([each.received(inside, _device_of(model)) for _, each in sent], len(sent)), start


def refuse_own_closures(loss: Loss) -> None:
    """Raises where a loss is a closure that takes no batch: what it captures is this rank's alone."""
    if isinstance(loss, ClosureLoss) and SentBatch.of(loss).is_nothing:
        raise InvalidRequestError(
            "a closure that takes no batch holds on to that of its own rank, and J is the mean of the losses of all "
            "ranks: use check_module(model, loss_fn, batch), or GradientMonitor.of_closure(model, closure) with "
            "step(batch), so that the ranks can send each other their batches."
        )


def _sent(model: nn.Module, step: TrainingStep, window: Window) -> _SentStep:
    seen = None if step.forwards is None else [SentForward.of(model, each) for each in step.forwards]
    previous = step.previous.losses if isinstance(step.previous, MeanLoss) else ()
    return _SentStep(
        batches=[SentBatch.of(loss) for loss in window.losses],
        weights=list(window.weights),
        divisor=window.divisor,
        forwards=seen,
        changed=_changed(model, step.forwards),
        previous=[SentBatch.of(loss) for loss in previous],
        moved=step.weights_moved(),
    )


def _changed(model: nn.Module, forwards: Sequence[SeenForward] | None) -> list[str]:
    """The buffers that J may read and that hold other numbers than they did when the first forward began.

    The running statistics of a normalization that trains are written only.
    """
    if not forwards:
        return []
    before, written = forwards[0].start.values, _written_only(model)
    return [
        name
        for name, buffer in named_buffers(model)
        if buffer in before and name not in written and not torch.equal(before[buffer], buffer)
    ]


def _written_only(model: nn.Module) -> set[str]:
    training = [(name, module) for name, module in named_modules(model) if keeps_statistics(module) and module.training]
    return {f"{name}.{buffer}".lstrip(".") for name, module in training for buffer, _ in module.named_buffers()}


def _forwards(sent: Sequence[_SentStep], model: nn.Module) -> tuple[SeenForward, ...] | None:
    """The forwards of all ranks, the first of each with that rank's buffers; None where a rank has not seen its own."""
    if any(each.forwards is None for each in sent):
        return None
    told = [list(each.forwards or ()) for each in sent]
    first = [forwards[0].buffers for forwards in told if forwards]
    changed = {name for each in sent for name in each.changed} | _that_differ(first) - _written_only(model)
    return tuple(
        forward.received(model, None if rank == number == 0 else (() if number else changed))
        for rank, forwards in enumerate(told)
        for number, forward in enumerate(forwards)
    )


def _that_differ(buffers: Sequence[Mapping[str, torch.Tensor]]) -> set[str]:
    """The names of the buffers that do not hold the same for all ranks."""
    first = buffers[0] if buffers else {}
    return {name for each in buffers[1:] for name, value in each.items() if not _equal(value, first.get(name))}


def _equal(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one, other)


def _window(sent: Sequence[_SentStep], accumulate: int, here: _Here) -> WindowOfRanks:
    """The batches of all ranks, each with the share that the mean of the ranks' losses, or its weight, gives it."""
    batches = [batch for each in sent for batch in each.batches]
    sizes = [batch.size for batch in batches]
    weights, divisor = _weights(sent)
    return WindowOfRanks(
        losses=[batch.received(here.loss, here.device) for batch in batches],
        weights=weights,
        divisor=divisor,
        accumulate=accumulate,
        ranks=[rank for rank, each in enumerate(sent) for _ in each.batches],
        sizes=[size for size in sizes if size is not None] if None not in sizes else (),
    )


def _weights(sent: Sequence[_SentStep]) -> tuple[Sequence[float], float]:
    """The weights of all batches, empty where they are equal, and what the sum is divided by."""
    declared = [rank for rank, each in enumerate(sent) if each.weights]
    if declared and len(declared) < len(sent):
        raise InvalidRequestError(
            f"weight must be given on all ranks or on none: rank {declared[0]} has given one, and others have not."
        )
    if declared:
        return [weight for each in sent for weight in each.weights], float(sum(each.divisor for each in sent))
    divisors = [each.divisor for each in sent]
    if len(set(divisors)) == 1:
        return (), divisors[0] * len(sent)
    return [1 / each.divisor for each in sent for _ in each.batches], float(len(sent))


def _at(parameters: Numbers, forwards: tuple[SeenForward, ...] | None) -> tuple[SeenForward, ...] | None:
    """The forwards with the leader's numbers in these parameters."""
    if forwards is None or not parameters:
        return forwards
    return tuple(
        replace(each, start=replace(each.start, values={**each.start.values, **parameters})) for each in forwards
    )


def _of_leader(team: Team, model: nn.Module, parameters: Numbers) -> Start:
    """The leader's buffers, of which each rank has its own after a forward: running statistics, for example.

    And its parameters, where those of the ranks are apart by rounding.
    """
    buffers = dict(named_buffers(model))
    numbers = {name: partial(_numbers_of, buffer) for name, buffer in buffers.items()}
    differing = {name: ranks[0] for name, ranks in that_differ(team, numbers).items()}
    values = {
        buffers[name]: torch.from_numpy(value).reshape(buffers[name].shape).to(buffers[name])
        for name, value in differing.items()
        if value is not None and value.size == buffers[name].numel()
    }
    return Start(None, {**values, **parameters})


def _numbers_of(buffer: torch.Tensor) -> Floats | None:
    return None if buffer.is_complex() else buffer.detach().to("cpu", torch.float64).numpy(force=True).ravel()


def _previous(sent: Sequence[_SentStep], here: _Here) -> MeanLoss | None:
    """J of the batches before, of all ranks; None where one has none."""
    losses = [batch.received(here.loss, here.device) for each in sent for batch in each.previous]
    return MeanLoss(losses, len(losses)) if losses and all(each.previous for each in sent) else None


def _device_of(model: nn.Module) -> torch.device:
    """Where a model computes."""
    found = [parameter.device for parameter in model.parameters()]
    return next((device for device in found if device.type != "cpu"), torch.device("cpu"))
