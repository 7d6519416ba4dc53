"""One run of J and its backward in which every call is recorded with the gradients that reach and leave it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from torch_gradcheck.diagnosis.culprit.call_recording import (
    NO_TAPS,
    GradientTaps,
    RecordedCall,
    Recording,
    paired_with_recomputed,
)
from torch_gradcheck.diagnosis.culprit.hooks import HookWatch
from torch_gradcheck.diagnosis.culprit.tangents import WrongCoordinate
from torch_gradcheck.gradients.by_autograd import gradients_of
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.torch_internals.autograd import before_hooks


class Run:
    """One recorded run of J and its backward.

    Attributes:
        loss: J in this run; differs from J(θ) where recording changes J.
        raw: the gradients of each wrong parameter before its hooks, in the order in which they arrived.
        full: whether the calls took too much memory to be recorded.
        roots: calls made by the loss function or closure itself.
        calls: all calls but those made by a backward.
        hooks: that changed a gradient.
    """

    def __init__(
        self, objective: Objective, wrong: Sequence[WrongCoordinate], taps: GradientTaps, accumulated: bool
    ) -> None:
        self._objective, self._accumulated = objective, accumulated
        self.loss = math.nan
        self.raw: dict[torch.Tensor, list[torch.Tensor]] = {}
        with (
            torch.enable_grad(),
            objective.evaluation(at_theta=True),
            _recording(objective, taps) as recording,
            HookWatch(objective.model, recording.running) as watch,
        ):
            self._backward(list(dict.fromkeys(each.entry.parameter for each in wrong)), recording)
        paired_with_recomputed(recording.calls)
        self.full = recording.full
        self.roots = recording.roots
        self.calls = [call for call in recording.calls if not call.in_backward]
        self.hooks = watch.changing

    @classmethod
    def of(cls, objective: Objective, wrong: Sequence[WrongCoordinate], accumulated: bool) -> Run:
        """The run with the most gradient taps, among those that leave J as it is.

        Raises:
            RuntimeError: every way to record calls changes J.
        """
        for taps in (GradientTaps(), GradientTaps(inputs=False), GradientTaps(inputs=False, rooted=False)):
            try:
                run = cls(objective, wrong, taps, accumulated)
            except RuntimeError:  # J does to a tapped tensor what autograd forbids for one with a graph
                continue
            if objective.same(run.loss, objective.loss):
                return run
        raise RuntimeError("J is another function when its calls are recorded")

    def _backward(self, watched: list[nn.Parameter], recording: Recording) -> None:
        if watched:
            with before_hooks(watched[0]) as self.raw[watched[0]]:
                self._backward(watched[1:], recording)
            return
        loss = self._objective.compute()
        self.loss = float(loss.detach())
        if self._accumulated or not loss.requires_grad:
            return
        recording.forget_gradients()  # of backwards that the closure ran itself
        for gradients in self.raw.values():
            gradients.clear()
        theta = [each for each in self._objective.model.parameters() if each.requires_grad]
        gradients_of([loss], [*theta, *recording.leaves])


def recorded_calls(objective: Objective) -> list[RecordedCall]:
    """The calls of one evaluation of J, without gradients."""
    with torch.enable_grad(), objective.evaluation(at_theta=True), _recording(objective) as recording:
        objective.compute()
    return recording.calls


def _recording(objective: Objective, taps: GradientTaps = NO_TAPS) -> Recording:
    return Recording(lambda: objective.random_state, taps)
