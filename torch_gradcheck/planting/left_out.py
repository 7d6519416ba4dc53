"""A module's own parameter left out of the gradient of its input: as a backward does that forgets a factor or a term.

The gradient of the input is then that of the module with the parameter replaced by its neutral element: ones for what
multiplies, zeros for a bias. Gradients of parameters stay right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from torch_gradcheck.gradients.accumulation import gradients_of
from torch_gradcheck.gradients.by_autograd import theta_gradients
from torch_gradcheck.objective.nested import rebuilt
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.torch_internals.dispatch import transforms_in_force
from torch_gradcheck.torch_internals.modules import named_modules

TERMS = ("bias", "beta", "shift", "offset")
"""What the names of parameters contain that are added; others are taken for factors."""

STEP = 1e-3
"""How far the inputs of a module are moved."""

DIFFERENT = 1e-6
"""Two slopes or gradients are different where they differ by more than this part of the larger one."""


class CannotPlantError(Exception):
    """A module cannot be run a second time beside itself."""


def neutral_value(name: str) -> int:
    """The number that a parameter of this name is replaced by: 0 for one that is added, 1 for one that multiplies."""
    return 0 if any(term in name.rpartition(".")[2].lower() for term in TERMS) else 1


@contextmanager
def left_out(objective: Objective, module: nn.Module, name: str) -> Iterator[None]:
    """Inside the block, the backward of `module` gives the gradient of its input without its own parameter `name`.

    In every call the module runs on detached inputs, which gives its output and the gradients of its parameters; a
    second run, with the parameter replaced and from the same random state, gives the gradients of its inputs.
    """
    calls: list[_Call] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        calls.append(_Call(module, (args, kwargs), objective))
        return rebuilt((args, kwargs), torch.Tensor.detach)

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        call = calls.pop()
        parameter = getattr(module, name).detach()
        return call.joined(output, {name: torch.full_like(parameter, neutral_value(name))})

    handles = [
        nn.Module.register_forward_pre_hook(module, before, with_kwargs=True),
        nn.Module.register_forward_hook(module, after, prepend=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class InputGradients:
    """The parameters that enter the gradient of their module's input, found by one evaluation of J and its backward.

    Whether one does is told by slopes of the module along a random direction, which moving the parameter changes or
    not, and not by its backward: that may be the one that forgets it.

    Attributes:
        entering: name of a module → names of its own parameters that do.
        forgotten: the same, of those that its backward leaves out already.
        failed: the names of the modules that cannot be run beside themselves; nothing is known of them.
        asked: the names of the modules of which J's backward asks for the gradient of an input.
    """

    def __init__(self, model: nn.Module, objective: Objective, theta: Theta) -> None:
        self.entering: dict[str, set[str]] = {}
        self.forgotten: dict[str, set[str]] = {}
        self.failed: list[str] = []
        self.asked: set[str] = set()
        self._objective = objective
        owners = {name: each for name, each in named_modules(model) if list(each.named_parameters(recurse=False))}
        handles = [
            nn.Module.register_forward_hook(each, self._look(name), with_kwargs=True) for name, each in owners.items()
        ]
        try:
            with torch.enable_grad(), objective.evaluation():
                theta_gradients(objective.compute, theta, epsilon(objective.dtype))  # a checkpoint calls modules in it
        finally:
            for handle in handles:
                handle.remove()

    def _look(self, name: str) -> Callable[..., None]:
        def after(module: nn.Module, args: Any, kwargs: Any, _: Any) -> None:
            tensors = _floating((args, kwargs))
            if any(tensor.requires_grad for tensor in tensors):
                self.asked.add(name)
            if tensors and name not in self.entering:
                self.entering[name], self.forgotten[name] = set(), set()
                if transforms_in_force():  # what a vmap gives a module is nothing outside of it
                    self.failed.append(name)
                    return
                self._try(name, module, _Call(module, (args, kwargs), self._objective, everything=True))

        return after

    def _try(self, name: str, module: nn.Module, call: _Call) -> None:
        try:
            slopes, gradients = call.slopes({}), call.input_gradients({})
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.is_floating_point() or parameter.is_complex():
                    moved = {own: parameter.detach() + _between_half_and_three_halves(parameter, 0)}
                    if _differ(slopes, call.slopes(moved)):
                        self.entering[name].add(own)
                        if not _differ(gradients, call.input_gradients(moved)):
                            self.forgotten[name].add(own)
        except Exception:  # of the user's own module, run where it did not expect to be
            self.failed.append(name)


def _differ(ones: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    for one, other in zip(ones, others, strict=True):
        gap, size = (one - other).abs(), torch.maximum(one.abs(), other.abs())
        if gap.numel() and not bool(gap.max() <= DIFFERENT * size.max()):  # True for NaN
            return True
    return False


def _between_half_and_three_halves(like: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return (torch.rand(like.shape, generator=generator, dtype=torch.float64) + 0.5).to(like)


class _Call:
    """A call of a module that can be run again beside itself, from the same inputs and random state.

    Args:
        module: what is called.
        arguments: (args, kwargs).
        objective: knows the random state.
        everything: take all floating-point inputs for differentiable; else those that require a gradient.
    """

    def __init__(self, module: nn.Module, arguments: Any, objective: Objective, everything: bool = False) -> None:
        self._objective, self._random = objective, objective.random_state
        self.inputs = [tensor for tensor in _floating(arguments) if everything or tensor.requires_grad]
        self._leaves = [tensor.detach().clone().requires_grad_() for tensor in self.inputs]
        copies = {id(tensor): leaf for tensor, leaf in zip(self.inputs, self._leaves, strict=True)}
        self._arguments = rebuilt(arguments, lambda tensor: copies.get(id(tensor), tensor.detach()))
        self._alone = _Alone(module)

    def joined(self, output: Any, replacements: dict[str, torch.Tensor]) -> Any:
        """`output` of the run on detached inputs, the gradients of the inputs coming from the run with replacements."""
        second = self._run(replacements)
        own = _floating(output)
        if [each.shape for each in own] != [each.shape for each in second]:
            raise CannotPlantError
        pairs = [(one, other) for one, other in zip(own, second, strict=True) if other.requires_grad]
        if not pairs:
            return output
        zeros = _Backward.apply([other for _, other in pairs], self._leaves, *self.inputs)  # type: ignore[no-untyped-call]
        joined = {id(one): one + zero for (one, _), zero in zip(pairs, zeros, strict=True)}
        return rebuilt(output, lambda tensor: joined.get(id(tensor), tensor))

    def input_gradients(self, replacements: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The gradients of the inputs for a random gradient of the outputs, the same in every run."""
        outputs = [each for each in self._run(replacements) if each.requires_grad]
        if not outputs:
            return [torch.zeros_like(leaf) for leaf in self._leaves]
        cotangents = [_between_half_and_three_halves(each, 1) for each in outputs]
        return _pulled_back(outputs, self._leaves, cotangents)

    def slopes(self, replacements: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """How far the outputs move when all inputs move by a small step along a random direction."""
        directions = [STEP * _between_half_and_three_halves(leaf, 2) for leaf in self._leaves]
        ends = [self._run(replacements, [sign * each for each in directions]) for sign in (1, -1)]
        return [(after - before).detach() for after, before in zip(*ends, strict=True)]

    def _run(
        self, replacements: dict[str, torch.Tensor], steps: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        arguments = self._arguments
        if steps is not None:
            moved = {id(leaf): leaf.detach() + step for leaf, step in zip(self._leaves, steps, strict=True)}
            arguments = rebuilt(arguments, lambda tensor: moved.get(id(tensor), tensor))
        after = self._objective.random_state
        self._random.restore()
        try:
            with torch.enable_grad(), saved_tensors_hooks(_itself, _itself):  # those of a checkpoint around would run J
                return self._alone.outputs(arguments, replacements)
        finally:
            after.restore()


class _Alone(nn.Module):
    """The forward of a module without its hooks, on copies of all that it holds, which it may write to."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.forward(*args, **kwargs)

    def outputs(self, arguments: Any, replacements: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The floating-point tensors that it puts out."""
        parameters = dict(self.named_parameters()) | {f"inner.{name}": each for name, each in replacements.items()}
        held: dict[str, torch.Tensor] = {name: tensor.detach().clone() for name, tensor in self.named_buffers()}
        held |= {name: nn.Parameter(each.detach(), requires_grad=False) for name, each in parameters.items()}
        args, kwargs = rebuilt(arguments, lambda tensor: tensor.clone())
        return _floating(torch.func.functional_call(self, held, args, kwargs))


class _Backward(torch.autograd.Function):
    """Zeros in the shape of `outputs`, whose gradient passes through `outputs` to `leaves`, and on to the inputs."""

    @staticmethod
    def forward(ctx: Any, outputs: list[torch.Tensor], leaves: list[torch.Tensor], *_: torch.Tensor) -> Any:
        ctx.outputs, ctx.leaves = outputs, leaves
        return tuple(torch.zeros_like(output) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
        return (None, None, *_pulled_back(ctx.outputs, ctx.leaves, cotangents))


def _pulled_back(
    outputs: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    with torch.enable_grad():
        found = gradients_of(outputs, leaves, cotangents)
    return [torch.zeros_like(leaf) if each is None else each for leaf, each in zip(leaves, found, strict=True)]


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _floating(value: Any) -> list[torch.Tensor]:
    """The distinct floating-point and complex tensors in a nested value, in order."""
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() or tensor.is_complex():
            found[id(tensor)] = tensor
        return tensor

    rebuilt(value, keep)
    return list(found.values())
