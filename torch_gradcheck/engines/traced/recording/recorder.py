"""Runs J once and writes its tape: every operation that a parameter can move, by numbered values.

What no parameter can move (the batch, masks, random draws, their products) enters the tape as constants. Python
that looks at a value which a parameter can move would be baked in by a trace, so it ends the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode_stack

from torch_gradcheck.engines.traced.recording.aliasing import AliasTracker
from torch_gradcheck.engines.traced.recording.tape import Ref, Tape
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.torch_internals.dispatch import DispatchMode
from torch_gradcheck.torch_internals.functional_forms import OnCopies, mutated_arguments, without_side_effects
from torch_gradcheck.torch_internals.modules import running_module
from torch_gradcheck.torch_internals.operations import flatten, overloads

aten = torch.ops.aten


def record(objective: Callable[[], Tensor], parameters: Sequence[Tensor]) -> tuple[Tape, list[int], int, float]:
    """Evaluate J once, with gradients enabled, and record it.

    Dispatch modes of the caller's stay in force, in front of the recording: the tape holds what they made of J.

    Returns:
        The tape, the number of every parameter's value, the number of J's, J.

    Raises:
        Untraceable: J looks at values in Python, or does what the tape has no notion of.
    """
    tape = Tape()
    windows = AliasTracker(tape)
    numbers = []
    for parameter in parameters:
        if not windows.holds(parameter):
            windows.bind(parameter, tape.constant(parameter, depends=True))
        numbers.append(windows.value(parameter))
    callers_modes = _get_current_dispatch_mode_stack()
    with ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        # Fused attention kernels have no formula to batch; the plain one is made of products and a softmax.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(Recorder(windows))
        for mode in callers_modes:
            stack.enter_context(InFront(mode))
        stack.enter_context(PythonReads(windows))
        J = objective()
    return tape, numbers, windows.value(J), float(J.detach())


class InFront(DispatchMode):
    """Lets a mode that is already in force work on operations before they are recorded."""

    def __init__(self, mode: TorchDispatchMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._mode.__torch_dispatch__(func, types, args, kwargs or {})


class PythonReads(TorchFunctionMode):
    """Stops J where it takes values out of torch without an operation that a dispatch mode would see."""

    _READS = frozenset({"numpy", "tolist", "__array__", "__dlpack__"})

    def __init__(self, windows: AliasTracker) -> None:
        super().__init__()
        self._windows = windows

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in self._READS and isinstance(args[0], Tensor) and self._windows.depends(args[0]):
            reason = f"Tensor.{name} takes a value to Python that depends on a parameter"
            raise Untraceable(reason, op=name, module=running_module())
        return func(*args, **(kwargs or {}))


class Recorder(DispatchMode):
    """Writes down each operation that a parameter can move, as it runs."""

    def __init__(self, windows: AliasTracker) -> None:
        super().__init__()
        self._windows = windows
        self._tape = windows.tape

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._can_decompose() and func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                return func.decompose(*args, **kwargs)
        if func in _BATCH_NORMS:
            return self._batch_norm(func, args, kwargs)
        return self._operation(func, args, kwargs)

    def _operation(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation; record it if a parameter can move its results."""
        mutated = mutated_arguments(func, args, kwargs)
        moved = func not in _SHAPE_ONLY and self._depends((args, tuple(kwargs.values())))
        if moved and func in _OVERWRITES:
            moved = self._depends((args[1:], tuple(kwargs.values())))
        if moved:
            _refuse_python_reads(func, self._depends, args)
            args_taken, kwargs_taken = self._numbered(args), {key: self._numbered(x) for key, x in kwargs.items()}
        for x in mutated:
            self._windows.before_write(x)
        promotes = func is not aten.copy_.default and _mixed((args, tuple(kwargs.values())))
        result = func(*args, **kwargs)
        if moved:
            self._write(func, args_taken, kwargs_taken, mutated, result, promotes)
        else:
            for x in mutated:
                self._windows.overwrite(x)
        return result

    def _write(
        self,
        func: OpOverload,
        args: Any,
        kwargs: dict[str, Any],
        mutated: list[Tensor],
        result: Any,
        promotes: bool = False,
    ) -> None:
        """Put an operation that has run on the tape, in a form without side effects."""
        fresh = [x for x in flatten(result) if not any(x is written for written in mutated)]
        results = [*mutated, *fresh]
        if (
            func in _WINDOWS_ONLY
            or torch.Tag.inplace_view in func.tags
            or (not mutated and all(self._windows.holds(x) for x in results))
        ):
            return  # no new value: where it is read, its window on known memory tells which it is
        frozen = tuple(x.clone() for x in results) if torch.Tag.nondeterministic_seeded in func.tags else None
        function: Callable[..., Any] = _RESHAPES.get(func, func)
        if mutated:
            function = without_side_effects(func, plain=not fresh and not promotes)
            if not isinstance(function, OnCopies):
                kwargs.pop("out", None)
        outputs = self._tape.record(function, args, kwargs, count=len(results), module=running_module(), frozen=frozen)
        for position, (x, number) in enumerate(zip(results, outputs, strict=True)):
            if position < len(mutated):
                self._windows.write(x, number)
            else:
                self._windows.bind(x, number)

    def _batch_norm(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Batch normalization, whose signature does not tell that it updates running statistics."""
        x, weight, bias, mean, variance, training, momentum, eps = args
        updated = [statistic for statistic in (mean, variance) if training and statistic is not None]
        for statistic in updated:
            self._windows.before_write(statistic)
        moved = self._depends((x, weight, bias, *(() if training else (mean, variance))))
        taken: tuple[Any, ...] = ()
        if moved:
            taken = self._numbered((x, weight, bias) if training else (x, weight, bias, mean, variance))
        result = func(*args, **kwargs)
        for statistic in updated:
            if moved:
                self._windows.write(statistic, *self._tape.record(unknown_statistic, (taken[0],)))
            else:
                self._windows.overwrite(statistic)
        if moved and training:
            self._write(aten._native_batch_norm_legit.no_stats, (*taken, True, momentum, eps), {}, [], result)
        elif moved:
            self._write(aten._native_batch_norm_legit_no_training.default, (*taken, momentum, eps), {}, [], result)
        return result

    def _depends(self, tree: Any) -> bool:
        return any(self._windows.depends(x) for x in flatten(tree))

    def _numbered(self, tree: Any) -> Any:
        """The same arguments with numbers in the place of tensors."""
        if isinstance(tree, Tensor):
            return Ref(self._windows.value(tree))
        if isinstance(tree, (tuple, list)):
            return type(tree)(self._numbered(item) for item in tree)
        return tree


def _refuse_python_reads(func: OpOverload, depends: Callable[[Any], bool], args: tuple[Any, ...]) -> None:
    """Stop at operations whose result is a Python value, or has a shape that depends on values."""
    if func in _RESIZES:
        raise Untraceable(f"{func} changes the memory under a tensor", op=str(func), module=running_module())
    if torch.Tag.data_dependent_output in func.tags:
        reason = f"{func} (item, a condition or a comparison) takes a value to Python that depends on a parameter"
        raise Untraceable(reason, op=str(func), module=running_module())
    if torch.Tag.dynamic_output_shape in func.tags:
        # x[mask] has a shape that follows from the mask alone.
        deciding = args[1:] if func in _SELECTIONS else args
        if func is aten.index.Tensor:
            deciding = tuple(index for index in flatten(args[1]) if index.dtype in (torch.bool, torch.uint8))
        if depends(deciding):
            reason = f"{func} has a shape that depends on values which depend on a parameter"
            raise Untraceable(reason, op=str(func), module=running_module())


def _mixed(args: tuple[Any, ...]) -> bool:
    """Whether floating dtypes differ, so that an operation in place rounds where its functional form promotes."""
    return len({x.dtype for x in flatten(args) if x.is_floating_point() or x.is_complex()}) > 1


def unknown_statistic(_: Tensor) -> Tensor:
    """Stands for running statistics after their update, which J as a rule does not read."""
    raise Untraceable("J reads running statistics that it has updated", op="native_batch_norm")


_SHAPE_ONLY = overloads(
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like",
    "new_empty", "new_empty_strided", "new_zeros", "new_ones", "new_full", "sym_size", "sym_numel", "sym_stride",
)  # fmt: skip

# What they write depends on nothing they overwrite.
_OVERWRITES = overloads(
    "zero_", "fill_", "copy_", "bernoulli_", "uniform_", "normal_", "random_", "exponential_", "geometric_",
    "cauchy_", "log_normal_",
)  # fmt: skip

# Their first argument has no say in the shape of the result.
_SELECTIONS = overloads("index", "masked_select", "_ctc_loss")

_RESIZES = overloads("resize_", "resize_as_")

_WINDOWS_ONLY = overloads("as_strided", "set_")

_BATCH_NORMS = frozenset({aten.native_batch_norm.default, aten._native_batch_norm_legit.default})

# A batch of values need not have the strides that `view` asks for.
_RESHAPES: dict[OpOverload, Callable[..., Any]] = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
}
