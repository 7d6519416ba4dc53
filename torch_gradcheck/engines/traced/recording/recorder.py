"""Runs J once and writes its tape: every operation that depends on a parameter, by numbered values.

Values that depend on no parameter (the batch, masks, random draws, their products) enter the tape as constants. Python
code may look at a value that depends on a parameter, and decide by it: see `reads`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_gradcheck.engines.traced.recording.aliasing import AliasTracker
from torch_gradcheck.engines.traced.recording.displaced import MOST_READS, displacements, same_record
from torch_gradcheck.engines.traced.recording.reads import PythonReads, Reads
from torch_gradcheck.engines.traced.recording.tape import Ref, Tape
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.torch_internals.dispatch import DispatchMode, TorchDispatchMode, current_modes, modes_disabled
from torch_gradcheck.torch_internals.functional_forms import OnCopies, mutated_arguments, without_side_effects
from torch_gradcheck.torch_internals.modules import running_module
from torch_gradcheck.torch_internals.operations import (
    SCALAR_READS,
    OpOverload,
    decomposes,
    existing,
    flatten,
    overload,
    overloads,
)


class Record(NamedTuple):
    """One run of J.

    Attributes:
        tape: the operations.
        parameters: the number of every parameter's value.
        output: the number of J's.
        J: its value.
        refusals: why each read of a real number would end the recording.
    """

    tape: Tape
    parameters: list[int]
    output: int
    J: float
    refusals: list[Untraceable]


def record(objective: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Record:
    """Evaluate J once, with gradients enabled, and record it; more often where it reads real numbers, see `displaced`.

    The caller's dispatch modes stay in force, in front of the recording: the tape holds the operations that they make
    of J.

    Raises:
        Untraceable: J computes with numbers that it reads in Python, or does something that a tape cannot hold.
    """
    found = _recorded(objective, parameters)
    reads = len(found.refusals)
    if reads > MOST_READS:
        raise found.refusals[0]
    for each in displacements(reads) if reads else ():
        try:
            other = _recorded(objective, parameters, each)
        except Exception as error:
            raise found.refusals[0] from error
        if len(other.refusals) != reads or other.J != found.J or not same_record(found.tape, other.tape):
            raise found.refusals[0]
    return found


def _recorded(objective: Callable[[], Tensor], parameters: Sequence[Tensor], displaced: Sequence[float] = ()) -> Record:
    """Evaluate J once and record it, with the real numbers that it reads displaced by shares of themselves."""
    tape = Tape()
    aliases = AliasTracker(tape)
    reads = Reads(aliases, displaced)
    numbers = []
    for parameter in parameters:
        if not aliases.holds(parameter):
            aliases.bind(parameter, tape.constant(parameter, depends=True))
        numbers.append(aliases.value(parameter))
    callers_modes = current_modes()
    with ExitStack() as stack:
        stack.enter_context(modes_disabled())
        # Fused attention kernels have no formula to batch; the plain one is made of products and a softmax.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(Recorder(aliases, reads))
        for mode in callers_modes:
            stack.enter_context(InFront(mode))
        stack.enter_context(PythonReads(reads))
        J = objective()
    return Record(tape, numbers, aliases.value(J), float(J.detach()), reads.refusals)


class InFront(DispatchMode):
    """Lets one of the caller's modes work on operations before they are recorded."""

    def __init__(self, mode: TorchDispatchMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._mode.__torch_dispatch__(func, types, args, kwargs or {})


class Recorder(DispatchMode):
    """Puts each operation that depends on a parameter on the tape, as it runs."""

    def __init__(self, aliases: AliasTracker, reads: Reads) -> None:
        super().__init__()
        self._aliases, self._reads = aliases, reads
        self._tape = aliases.tape

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if decomposes(func):
            with self:
                return func.decompose(*args, **kwargs)
        if func in _BATCH_NORMS:
            return self._batch_norm(func, args, kwargs)
        if func in _BATCH_NORM_BACKWARDS:
            args = _without_running_statistics(args)
        if func in SCALAR_READS:
            return self._reads.number(func, args[0])
        return self._operation(func, args, kwargs)

    def _operation(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation; record it if its results depend on a parameter."""
        mutated = mutated_arguments(func, args, kwargs)
        depends = func not in _SHAPE_ONLY and self._depends((args, tuple(kwargs.values())))
        if depends and func in _OVERWRITES:
            depends = self._depends((args[1:], tuple(kwargs.values())))
        if depends:
            depends = self._reads.guard_reads_of(func, args) and self._depends((args, tuple(kwargs.values())))
        if depends:
            args_taken, kwargs_taken = self._numbered(args), {key: self._numbered(x) for key, x in kwargs.items()}
        for x in mutated:
            self._aliases.before_write(x)
        promotes = func is not _COPY and _mixed((args, tuple(kwargs.values())))
        result = func(*args, **kwargs)
        if depends:
            self._write(func, args_taken, kwargs_taken, mutated, result, promotes)
        else:
            for x in mutated:
                self._aliases.overwrite(x)
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
            func in _VIEWS_ONLY
            or torch.Tag.inplace_view in func.tags
            or (not mutated and all(self._aliases.holds(x) for x in results))
        ):
            return  # no new value: where it is read, its view of known memory tells which it is
        frozen = tuple(x.clone() for x in results) if torch.Tag.nondeterministic_seeded in func.tags else None
        function: Callable[..., Any] = _RESHAPES.get(func, func)
        if mutated:
            function = without_side_effects(func, plain=not fresh and not promotes)
            if not isinstance(function, OnCopies):
                kwargs.pop("out", None)
        outputs = self._tape.record(function, args, kwargs, count=len(results), module=running_module(), frozen=frozen)
        for position, (x, number) in enumerate(zip(results, outputs, strict=True)):
            if position < len(mutated):
                self._aliases.write(x, number)
            else:
                self._aliases.bind(x, number)

    def _batch_norm(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Batch normalization, whose schema does not say that it updates running statistics."""
        x, weight, bias, mean, variance, training, momentum, eps = args
        updated = [statistic for statistic in (mean, variance) if training and statistic is not None]
        for statistic in updated:
            self._aliases.before_write(statistic)
        depends = self._depends((x, weight, bias, *(() if training else (mean, variance))))
        function = _BATCH_NORM_IN_TRAINING if training else _BATCH_NORM_IN_EVALUATION
        taken: tuple[Any, ...] = ()
        if depends:
            if function is None:
                reason = f"{func} has no form without side effects in this version of torch"
                raise Untraceable(reason, op=str(func), module=running_module())
            taken = self._numbered((x, weight, bias) if training else (x, weight, bias, mean, variance))
        result = func(*args, **kwargs)
        for statistic in updated:
            if depends:
                self._aliases.write(statistic, *self._tape.record(unknown_statistic, (taken[0],)))
            else:
                self._aliases.overwrite(statistic)
        if function is not None and depends:
            taken = (*taken, True) if training else taken
            self._write(function, (*taken, momentum, eps), {}, [], result)
        return result

    def _depends(self, tree: Any) -> bool:
        return any(self._aliases.depends(x) for x in flatten(tree))

    def _numbered(self, tree: Any) -> Any:
        """The same arguments with numbers in the place of tensors."""
        if isinstance(tree, Tensor):
            return Ref(self._aliases.value(tree))
        if isinstance(tree, (tuple, list)):
            return type(tree)(self._numbered(item) for item in tree)
        return tree


def _mixed(args: tuple[Any, ...]) -> bool:
    """Whether floating dtypes differ, so that an in-place operation rounds where its functional form promotes."""
    return len({x.dtype for x in flatten(args) if x.is_floating_point() or x.is_complex()}) > 1


def _without_running_statistics(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a backward of batch normalization; in training it is given running statistics for nothing."""
    grad, x, weight, _, _, mean, variance, training, *rest = args
    return (grad, x, weight, None, None, mean, variance, training, *rest) if training else args


def unknown_statistic(_: Tensor) -> Tensor:
    """Stands for running statistics after their update, which J does not read as a rule.

    Raises:
        Untraceable: always.
    """
    raise Untraceable("J reads running statistics that it has updated", op="native_batch_norm")


_SHAPE_ONLY = overloads(
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like",
    "new_empty", "new_empty_strided", "new_zeros", "new_ones", "new_full", "sym_size", "sym_numel", "sym_stride",
)  # fmt: skip
"""Operations whose results depend on shapes alone."""

_OVERWRITES = overloads(
    "zero_", "fill_", "copy_", "bernoulli_", "uniform_", "normal_", "random_", "exponential_", "geometric_",
    "cauchy_", "log_normal_",
)  # fmt: skip
"""Operations whose results do not depend on the values that they overwrite."""

_VIEWS_ONLY = overloads("as_strided", "set_")
"""Operations that give a view of known memory and no new value."""

_COPY = overload("copy_.default")

_BATCH_NORMS = frozenset(existing("native_batch_norm.default", "_native_batch_norm_legit.default"))

_BATCH_NORM_BACKWARDS = frozenset(existing("native_batch_norm_backward.default"))

_BATCH_NORM_IN_TRAINING = overload("_native_batch_norm_legit.no_stats")
_BATCH_NORM_IN_EVALUATION = overload("_native_batch_norm_legit_no_training.default")

_RESHAPES: dict[OpOverload, Callable[..., Any]] = {
    view: reshape
    for view in existing("view.default", "_unsafe_view.default")
    for reshape in existing("reshape.default")
}
"""View → an operation that does not need the strides that `view` asks for, which K values need not have."""
