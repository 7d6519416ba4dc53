"""One run of J and its backward in which every call is recorded with the gradients that reach and leave it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from torch_gradcheck.diagnosis.culprit.call_recording import NO_TAPS, GradientTaps, Recording
from torch_gradcheck.diagnosis.culprit.followed import SAME_MISTAKE
from torch_gradcheck.diagnosis.culprit.hooks import HookWatch
from torch_gradcheck.diagnosis.culprit.pairing import paired_with_recomputed
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.tangents import WrongCoordinate
from torch_gradcheck.diagnosis.culprit.unwritten_memory import ZeroedMemory
from torch_gradcheck.gradients.accumulation import gradients_of
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.torch_internals.autograd import before_hooks, has_hooks


class Run:
    """One recorded run of J and its backward.

    Attributes:
        loss: J in this run; differs from J(θ) where recording changes J.
        same: whether the wrong coordinates have the gradient that is on trial. They have not where what makes it wrong
            does not happen to the copies that tensors are replaced by.
        disturbing: whether this way to record or an earlier one has changed these gradients.
        full: whether the calls took too much memory to be recorded.
        roots: calls made by the loss function or closure itself.
        calls: all calls but those made by a backward.
        of_backwards: those made by the backward of a Function.
        hooks: that changed a gradient.
    """

    def __init__(
        self, objective: Objective, wrong: Sequence[WrongCoordinate], taps: GradientTaps, accumulated: bool
    ) -> None:
        self._objective, self._accumulated = objective, accumulated
        self.loss, self.same, self.disturbing = math.nan, True, False
        self._raw: dict[torch.Tensor, list[torch.Tensor]] = {}
        self._wrong = wrong
        with (
            torch.enable_grad(),
            objective.evaluation(at_theta=True),
            _recording(objective, taps) as recording,
            HookWatch(objective.model, recording.running) as watch,
            ZeroedMemory(),
        ):
            self._backward(list(dict.fromkeys(each.entry.parameter for each in wrong)), recording)
        paired_with_recomputed(recording.calls)
        self.full = recording.full
        self.roots = recording.roots
        self.calls = [call for call in recording.calls if not call.in_backward]
        self.of_backwards = [call for call in recording.calls if call.in_backward and call.made_by is not None]
        self.hooks = watch.changing

    @classmethod
    def of(
        cls,
        objective: Objective,
        wrong: Sequence[WrongCoordinate],
        accumulated: bool,
        moving: frozenset[tuple[int, int]] | None = None,
    ) -> Run:
        """The first run that leaves J and the wrong gradients as they are; else the first that leaves J as it is.

        Those with the most gradient taps come first.

        Args:
            objective: J.
            wrong: the coordinates that are followed.
            accumulated: J runs its backward itself.
            moving: outputs without a graph that depend on θ, see `GradientTaps.moving`.

        Raises:
            RuntimeError: every way to record calls changes J.
        """
        leaving_j: list[Run] = []
        for taps in (
            GradientTaps(moving=moving),
            GradientTaps(inputs=False, moving=moving),
            GradientTaps(inputs=False, rooted=False),
            GradientTaps(aliases=True, moving=moving),
        ):
            try:
                run = cls(objective, wrong, taps, accumulated)
            except RuntimeError:  # J does to a tapped tensor what autograd forbids for one with a graph
                continue
            if objective.same(run.loss, objective.loss):
                run.disturbing = bool(leaving_j) or not run.same
                leaving_j.append(run)
                if run.same:
                    return run
        if not leaving_j:
            raise RuntimeError("J is another function when its calls are recorded")
        return leaving_j[0]

    def before_hooks(self, wrong: WrongCoordinate) -> float:
        """The gradient of a coordinate before the parameter's hooks; where it has none, what is on trial."""
        parameter = wrong.entry.parameter
        raw = [wrong.of(gradient) for gradient in self._raw.get(parameter, [])]
        # A Function that asks for the parameter's gradient in its backward makes hooks run, too.
        return sum(raw) if raw and (self._accumulated or has_hooks(parameter)) else wrong.analytic

    def _backward(self, watched: list[torch.Tensor], recording: Recording) -> None:
        if watched:
            with before_hooks(watched[0]) as self._raw[watched[0]]:
                self._backward(watched[1:], recording)
            return
        loss = self._objective.compute()
        self.loss = float(loss.detach())
        if self._accumulated or not loss.requires_grad:
            return
        recording.forget_gradients()  # of backwards that the closure ran itself
        for before in self._raw.values():
            before.clear()
        theta, wrong = self._objective.leaves, {id(each.entry.parameter) for each in self._wrong}
        unwanted = [leaf for leaf in theta if id(leaf) not in wrong]
        gradients = gradients_of([loss], [*theta, *recording.leaves], unwanted=unwanted)
        found = dict(zip(theta, gradients, strict=False))
        self.same = all(_is_same(each, found.get(each.entry.parameter)) for each in self._wrong)


def _is_same(wrong: WrongCoordinate, gradient: torch.Tensor | None) -> bool:
    if not math.isfinite(wrong.error):
        return True
    value = 0.0 if gradient is None else wrong.of(gradient)
    return abs(value - wrong.analytic) <= SAME_MISTAKE * abs(wrong.error) + wrong.error_bar


def recorded_calls(objective: Objective) -> list[RecordedCall]:
    """The calls of one evaluation of J, without gradients."""
    with torch.enable_grad(), objective.evaluation(at_theta=True), _recording(objective) as recording:
        objective.compute()
    return recording.calls


def _recording(objective: Objective, taps: GradientTaps = NO_TAPS) -> Recording:
    return Recording(lambda: objective.random_state, taps)
