"""Values held at θ: what J takes out of the graph keeps, at every other θ, the value that it had at θ.

J with held values is the function that a deliberate stop-gradient means. A dispatch mode follows memory that depends on
θ. Where an operation of the graph reads such memory through a tensor that has no graph, the graph has been cut: by
`detach()`, by `.data`, under `no_grad` or by a backward without `create_graph`. The first evaluation, at θ, records the
values that are read there, in order; later ones read those instead of their own. Numbers that Python reads
(`.item()`, `.tolist()`, `.numpy()`) are held as well. Integers and conditions are not: they are constant around θ.

A custom Function of the graph reads its arguments, as an operation does. What its forward computes without a graph is
its own affair: nothing in it is held, nor what a backward reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from torch_gradcheck.objective.held_values import Cut, HeldValue, HeldValues, Way
from torch_gradcheck.objective.memory_of_theta import LEAVES, OTHER_LEAVES, Made, MemoryOfTheta
from torch_gradcheck.precision.dtypes import is_inexact
from torch_gradcheck.torch_internals.autograd import (
    function_forwards,
    in_backward,
    is_inside_function,
    reentrant_checkpoint,
)
from torch_gradcheck.torch_internals.code_lines import calling_frame, calling_line
from torch_gradcheck.torch_internals.dispatch import DispatchMode
from torch_gradcheck.torch_internals.modules import Calls, current_calls, set_calls
from torch_gradcheck.torch_internals.operations import (
    SCALAR_READS,
    existing,
    flatten,
    is_view,
    overloads,
    written_arguments,
)
from torch_gradcheck.torch_internals.tensors import storage_key

PACKAGE = str(Path(__file__).resolve().parents[1])

PARTS_OF_J = str(Path(__file__).resolve().with_name("loss"))
"""How the files of this package begin whose operations are part of J."""

READS = frozenset({"numpy", "tolist", "__array__", "__float__", "__complex__"})
"""Methods of a tensor that take its numbers to Python, some of them by no operation that a dispatch mode sees."""

FACTORIES = frozenset({"tensor", "as_tensor", "asarray", "new_tensor"})
"""Functions that make a tensor of the numbers of those in a list, by no operation that a dispatch mode sees."""


class Holding:
    """One evaluation in which values are held, as a context manager; `finished` inside of it ends J.

    Args:
        held: recorded if it is not complete, else read.
        theta: tensors that J depends on from the start.
        is_lent: whether a tensor object is the caller's, and not made by this evaluation.
    """

    def __init__(
        self, held: HeldValues, theta: Iterable[torch.Tensor], is_lent: Callable[[torch.Tensor], bool]
    ) -> None:
        self._mode = HoldMode(held, theta, is_lent)
        self._reads = HeldReads(self._mode)
        self._undo: list[Callable[[], Any]] = []

    def __enter__(self) -> Holding:
        calls = current_calls()
        self._undo = [lambda: set_calls(calls)]
        set_calls(_with_held_arguments(calls, self._mode))
        for mode in (self._mode, self._reads):
            mode.__enter__()  # type: ignore[no-untyped-call]
            self._undo.append(lambda mode=mode: mode.__exit__(None, None, None))  # type: ignore[misc]
        return self

    def __exit__(self, error: object = None, *rest: object) -> None:
        while self._undo:
            self._undo.pop()()
        self._mode.held.complete = self._mode.held.complete or error is None

    @property
    def strayed(self) -> bool:
        """Whether the graph was cut in other places than at θ."""
        return self._mode.strayed

    def finished(self, loss: torch.Tensor) -> torch.Tensor:
        """J, held where the loss itself has no graph; NaN where the graph was cut in other places than at θ."""
        return self._mode.finished(loss)


class HoldMode(DispatchMode):
    """Follows memory that depends on θ, and holds what is read of it without a graph; for `Holding`."""

    supports_higher_order_operators = True

    def __init__(
        self, held: HeldValues, theta: Iterable[torch.Tensor], is_lent: Callable[[torch.Tensor], bool]
    ) -> None:
        super().__init__()
        self.held, self._is_lent = held, is_lent
        self._records = not held.complete
        self._position, self._strayed = 0, False
        self._memory = MemoryOfTheta()
        self._inside_operations = WeakIdKeyDictionary()  # views whose graph the operation that made them will attach
        self._forwards = function_forwards()
        self._applies_function = False  # while one runs that was applied with a graph
        if self._records:
            held.values.clear()
        for tensor in theta:
            self._memory.mark(tensor, Made.THETA)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, frame = kwargs or {}, calling_frame()
        if _is_ours(frame):
            return func(*args, **kwargs)
        tensors = [x for x in _tensors((args, tuple(kwargs.values()))) if is_inexact(x)]
        for tensor in tensors:
            self._see(tensor)
        if not any(self._depends(tensor) for tensor in tensors):
            return func(*args, **kwargs)
        if func in SCALAR_READS:
            return self._number(func, args[0], frame)
        if torch.is_grad_enabled() and not is_view(func) and not in_backward():
            args, kwargs = self._with_held(func, args, kwargs, frame)
        result = func(*args, **kwargs)
        self._note(func, args, kwargs, result, frame)
        return result

    def read(self, name: str, tensor: torch.Tensor, frame: FrameType | None) -> torch.Tensor:
        """The tensor whose numbers Python gets that reads those of `tensor` by the method `name`."""
        if _is_ours(frame) or not is_inexact(tensor):
            return tensor
        self._see(tensor)
        if not self._depends(tensor) or self._is_private(frame) or self._memory.of(tensor) is Made.OF_FUNCTION:
            return tensor
        held = self._taken_tensor(name, tensor, self._cut(Way.READ, frame))
        return held.requires_grad_(tensor.requires_grad)

    def copied(self, tensor: torch.Tensor, copy: torch.Tensor, frame: FrameType | None) -> None:
        """Notes that a copy was made of a tensor by no operation, which has no graph.

        Args:
            tensor: what was copied.
            copy: its copy.
            frame: where.
        """
        if self._depends(tensor) and not copy.requires_grad and not self._is_private(frame):
            self._memory.mark(copy, Made.CUT)
            self._cut_through(copy, Way.READ, frame)

    def applied(self, function: Any, run: Callable[..., Any], args: Sequence[Any]) -> Any:
        """What a custom Function gives; of its arguments, those are held that the graph has lost.

        Args:
            function: the Function.
            run: applies it.
            args: its arguments.
        """
        frame = calling_frame()
        if self._is_private(frame) or not torch.is_grad_enabled():
            return run(*args)
        self._applies_function = True
        try:
            return run(*[self._held(function, x, frame) for x in args])
        finally:
            self._applies_function = False

    def finished(self, loss: torch.Tensor) -> torch.Tensor:
        """See `Holding.finished`."""
        self._see(loss)
        if self._is_cut(loss):
            cut = self._cut_of(loss, calling_frame())
            loss = self._taken_tensor("J", loss, cut)
        self.held.strays += self.strayed
        return loss * float("nan") if self.strayed else loss

    @property
    def strayed(self) -> bool:
        """See `Holding.strayed`."""
        return self._strayed or (not self._records and self._position != len(self.held.values))

    def _with_held(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], frame: FrameType | None
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """The arguments of an operation of the graph, those held that the graph has lost."""
        writes = written_arguments(func)
        read = [x for position, x in enumerate(args) if position not in writes]
        read += [x for name, x in kwargs.items() if name not in writes]
        if not any(self._is_cut(x) for x in _tensors(read)) or self._is_inside_function(frame):
            return args, kwargs
        new = tuple(x if position in writes else self._held(func, x, frame) for position, x in enumerate(args))
        return new, {name: x if name in writes else self._held(func, x, frame) for name, x in kwargs.items()}

    def _held(self, func: Any, x: Any, frame: FrameType | None) -> Any:
        """An argument of an operation or Function of the graph, held where the graph has lost it."""
        if isinstance(x, torch.Tensor):
            return self._held_tensor(func, x, frame) if self._is_cut(x) else x
        return type(x)([self._held(func, item, frame) for item in x]) if type(x) in (list, tuple) else x

    def _held_tensor(self, func: Any, tensor: torch.Tensor, frame: FrameType | None) -> torch.Tensor:
        memory, cut = self._memory.of(tensor), self._cut_of(tensor, frame)
        value = self._taken_tensor(_name(func), tensor, cut)
        if self._records:
            return tensor
        if self._is_lent(tensor):
            return value.requires_grad_(tensor.requires_grad)
        try:
            tensor.data = value  # so that autograd, which has saved the tensor before, reads the held value too
        except RuntimeError:  # of inference mode
            return value
        self._memory.mark(tensor, Made.CUT_LEAF if memory is Made.CUT_LEAF else Made.CUT)
        return tensor

    def _number(self, func: Any, tensor: torch.Tensor, frame: FrameType | None) -> Any:
        """The number that Python gets."""
        if self._is_private(frame) or self._memory.of(tensor) is Made.OF_FUNCTION:
            return func(tensor)
        return self._taken(_name(func), tensor, self._cut(Way.READ, frame), func)

    def _taken_tensor(self, reader: str, tensor: torch.Tensor, cut: Cut) -> torch.Tensor:
        held: torch.Tensor = self._taken(reader, tensor, cut, lambda x: x.detach().clone())
        return held

    def _taken(self, reader: str, tensor: torch.Tensor, cut: Cut, copied: Callable[[torch.Tensor], Any]) -> Any:
        """A copy of what is held in the place of a tensor; of the tensor itself where nothing is, or the cut is free.

        Args:
            reader: the operation that reads it.
            tensor: what there is at this θ.
            cut: where it left the graph.
            copied: makes of a tensor what is recorded.
        """
        if self._records:
            self.held.values.append(HeldValue(cut, reader, copied(tensor)))
        known = self.held.values[self._position :][:1] if not self._records else self.held.values[-1:]
        self._position += 1
        if not known or not _fits(known[0], reader, tensor):
            self._strayed = True
            return copied(tensor)
        value = known[0].value
        if known[0].cut in self.held.freed:
            return copied(tensor)
        return value.clone() if isinstance(value, torch.Tensor) else value

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any, frame: FrameType | None) -> None:
        """Notes what the memory holds that an operation has written or given another view of."""
        inputs = [x for x in _tensors((args, tuple(kwargs.values()))) if is_inexact(x) and self._depends(x)]
        if not inputs or func in _SHAPE_ONLY:
            return
        with_graph = torch.is_grad_enabled()
        if is_view(func):
            self._note_view(func, inputs[0], result, frame)
            return
        if with_graph:
            lost = not any(x.requires_grad for x in inputs)
            kind = Made.OF_FUNCTION if lost else Made.GRAPH
        else:
            kind = Made.OF_FUNCTION if self._is_inside_function(frame) else Made.CUT
        written = [x for position, x in enumerate(args) if position in written_arguments(func)]
        for x in _tensors([written, result, kwargs.get("out")]):
            if is_inexact(x) and self._is_changed(x, kind, inputs):
                self._memory.mark(x, kind if self._memory.of(x) not in OTHER_LEAVES else Made.CUT_LEAF)
                if kind is Made.CUT:
                    self._cut_through(x, self._way(), frame)

    def _is_changed(self, written: torch.Tensor, kind: Made, inputs: Sequence[torch.Tensor]) -> bool:
        """Whether memory that is written to is something else now; that of a leaf only by what comes from elsewhere."""
        known = self._memory.of(written)
        if known not in OTHER_LEAVES:
            return known is not Made.THETA
        return kind is Made.CUT and any(storage_key(x) != storage_key(written) for x in inputs)

    def _note_view(self, func: Any, base: torch.Tensor, result: Any, frame: FrameType | None) -> None:
        """Notes the line where memory of the graph is given a view without one.

        A view that autograd knows of gets its graph when the operation has ended. One that an operation of torch makes
        for itself (the sum of a tangent and a zero, in forward mode) never does, and is no cut.
        """
        if torch.is_grad_enabled() and base.requires_grad:
            if func in _DETACHES:
                self._cut_through(base, Way.DETACHED, frame)
            for view in _tensors([result]):
                self._inside_operations[view] = func not in _DETACHES
        if not torch.is_grad_enabled() and self._memory.of(base) is not Made.CUT:
            self._cut_through(base, self._way(), frame)

    def _see(self, tensor: torch.Tensor) -> None:
        """Notes memory that is seen to have a graph for the first time."""
        if tensor.requires_grad and self._memory.of(tensor) in (None, Made.OF_FUNCTION):
            self._memory.mark(tensor, Made.LEAF if tensor.is_leaf else Made.GRAPH)

    def _depends(self, tensor: torch.Tensor) -> bool:
        return tensor.requires_grad or self._memory.of(tensor) is not None

    def _is_cut(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor depends on θ, and the graph does not say so."""
        memory = self._memory.of(tensor) if is_inexact(tensor) else None
        if memory is Made.CUT_LEAF:
            return True
        if memory is None or memory is Made.OF_FUNCTION or self._inside_operations.get(tensor, False):
            return False
        return not tensor.requires_grad or (tensor.is_leaf and memory not in LEAVES)

    def _is_private(self, frame: FrameType | None) -> bool:
        """Whether what runs here is the own affair of a backward or of a custom Function."""
        return in_backward() or self._is_inside_function(frame)

    def _is_inside_function(self, frame: FrameType | None) -> bool:
        """Whether a custom Function that was applied with a graph runs its forward in this frame."""
        return self._applies_function and is_inside_function(frame, self._forwards)

    def _way(self) -> Way:
        return Way.IN_BACKWARD if in_backward() else Way.WITHOUT_GRAD

    def _cut(self, way: Way, frame: FrameType | None) -> Cut:
        return Cut(way, calling_line(frame) if self._records else None)

    def _cut_through(self, tensor: torch.Tensor, way: Way, frame: FrameType | None) -> None:
        if self._records:
            self._memory.cut_through(tensor, self._cut(way, frame))

    def _cut_of(self, tensor: torch.Tensor, frame: FrameType | None) -> Cut:
        way = Way.FROZEN if self._memory.of(tensor) in LEAVES else Way.DETACHED
        return self._memory.last_cut(tensor) or self._cut(way, frame)


class HeldReads(TorchFunctionMode):
    """Holds what Python reads of tensors by no operation; for `Holding`."""

    def __init__(self, mode: HoldMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), dict(kwargs or {})
        if name in READS and isinstance(args[0], torch.Tensor):
            args = (self._mode.read(name, args[0], calling_frame()), *args[1:])
        elif name in FACTORIES:
            frame = calling_frame()
            args, kwargs = (
                tuple(self._listed(x, frame) for x in args),
                {k: self._listed(x, frame) for k, x in kwargs.items()},
            )
        result = func(*args, **kwargs)
        if name == "__deepcopy__" and isinstance(result, torch.Tensor):
            self._mode.copied(args[0], result, calling_frame())
        return result

    def _listed(self, x: Any, frame: FrameType | None) -> Any:
        """A list of tensors, or of lists of them, those held whose numbers are read; anything else as it is."""
        if type(x) not in (list, tuple):
            return x
        are_tensors = [isinstance(each, torch.Tensor) for each in x]
        read = [
            self._mode.read("tensor", each, frame) if it_is else each
            for each, it_is in zip(x, are_tensors, strict=True)
        ]
        return type(x)([self._listed(each, frame) for each in read])


def _with_held_arguments(calls: Calls, mode: HoldMode) -> Calls:
    """The calls of modules and Functions, in which Functions get held arguments.

    A reentrant checkpoint calls its function as it is: it would run it without a graph, so that nothing told a cut.
    """

    def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
        if function is reentrant_checkpoint():
            run, _, *inputs = args
            return run(*inputs)
        return mode.applied(function, partial(calls.applying(function), **kwargs), args)

    return Calls(calls.module, classmethod(apply))


def _is_ours(frame: FrameType | None) -> bool:
    """Whether this package itself asked for an operation, and not J."""
    while frame is not None and frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    file = "" if frame is None else frame.f_code.co_filename
    return file.startswith(PACKAGE) and not file.startswith(PARTS_OF_J)


def _fits(held: HeldValue, reader: str, tensor: torch.Tensor) -> bool:
    same = held.reader == reader
    if not isinstance(held.value, torch.Tensor):
        return same
    return same and held.value.shape == tensor.shape and held.value.dtype == tensor.dtype


def _name(func: Any) -> str:
    return str(getattr(func, "overloadpacket", func).__name__)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return flatten(tree)


_DETACHES = frozenset(existing("detach.default", "detach_.default"))

_SHAPE_ONLY = overloads(
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like",
    "new_empty", "new_empty_strided", "new_zeros", "new_ones", "new_full",
)  # fmt: skip
"""Operations whose results depend on shapes alone."""
