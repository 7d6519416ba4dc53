"""Dispatch modes, function modes and functorch transforms: which are in force, and how they are ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _python_dispatch as python_dispatch

from torch_gradcheck.torch_internals.missing import internal

if TYPE_CHECKING:
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
else:
    TorchDispatchMode = getattr(python_dispatch, "TorchDispatchMode", object)


class DispatchMode(TorchDispatchMode):
    """The base of every dispatch mode of this package: sees each operation below autograd while it is in force.

    Torch guards a dispatch mode against its compiler, and imports the compiler for that: two seconds, which is longer
    than most checks take. These modes go without the guard, since a check turns compiled code off.
    """

    def __init__(self) -> None:
        internal(python_dispatch, "TorchDispatchMode", "see the operations of a model")
        super().__init__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exception: Any) -> None:
        """Ends the mode, also where an interrupt has ended it: torch raises RuntimeError then, in place of it."""
        if self not in current_modes():
            _push(self)
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def current_modes() -> list[TorchDispatchMode]:
    """The dispatch modes in force, the outermost first."""
    stack: list[TorchDispatchMode] = internal(
        python_dispatch, "_get_current_dispatch_mode_stack", "run under the caller's dispatch modes"
    )()
    return stack


def modes_disabled() -> AbstractContextManager[None]:
    """No dispatch mode is in force inside the block; all are again after it."""
    return _ModesDisabled()


class _ModesDisabled:
    """The block in which no dispatch mode is in force.

    It is a class, as `Loan` is: an interrupt would leave torch's own, a generator, suspended, to put modes back at some
    later time.
    """

    def __enter__(self) -> None:
        self._modes = current_modes()
        set_dispatch_modes([])

    def __exit__(self, *exception: object) -> None:
        set_dispatch_modes(self._modes)


def below_modes() -> AbstractContextManager[Any]:
    """Plain tensors are computed with below every dispatch mode inside the block; no mode is told, or taken away."""
    context: AbstractContextManager[Any] = internal(
        torch._C, "_DisableTorchDispatch", "note the gradients of a backward apart from dispatch modes"
    )()
    return context


def dispatch_modes_in_force() -> int:
    """How many dispatch modes are in force; 0 where this version of torch does not tell."""
    return _length("_len_torch_dispatch_stack")


def dispatch_modes() -> list[TorchDispatchMode]:
    """The dispatch modes in force, the outermost first; none where this version of torch does not tell."""
    return current_modes() if dispatch_modes_in_force() else []


def set_dispatch_modes(modes: Sequence[TorchDispatchMode]) -> None:
    """Ends dispatch modes and puts others back in force, until they are these, the outermost first.

    An interrupt in the frames of a context manager may leave some in force, or none.
    """
    now = dispatch_modes()  # torch 2.6 crashes where it pops a mode that nobody else refers to
    same = [one is other for one, other in zip(now, modes, strict=False)]
    kept = same.index(False) if False in same else len(same)
    for _ in now[kept:]:
        internal(python_dispatch, "_pop_mode", "end dispatch modes")()
    for mode in modes[kept:]:
        _push(mode)


def _push(mode: TorchDispatchMode) -> None:
    internal(python_dispatch, "_push_mode", "put dispatch modes back in force")(mode)


def function_modes_in_force() -> int:
    """How many function modes are in force; 0 where this version of torch does not tell."""
    return _length("_len_torch_function_stack")


def pop_function_modes_down_to(count: int) -> None:
    """Ends function modes that an interrupt left in force."""
    while function_modes_in_force() > count:
        internal(torch.overrides, "_pop_mode", "end function modes after an interrupt")()


def transforms_in_force() -> int:
    """How many transforms of torch.func (vmap, grad, ...) are being computed; 0 where torch does not tell."""
    stack = getattr(_functorch(), "get_interpreter_stack", None)
    return 0 if stack is None else len(stack() or ())


def pop_transforms_down_to(count: int) -> None:
    """Ends transforms that an interrupt left in force, in which no tensor can require a gradient.

    One at a time: `pop_dynamic_layer_stack_and_undo_to_depth` ends two a turn in torch 2.6 to 2.10.
    """
    while transforms_in_force() > count:
        kind = _functorch().get_interpreter_stack()[-1].key().name
        internal(_functorch(), _ENDS[kind], f"end a transform ({kind}) after an interrupt")()


_ENDS = {
    "Vmap": "_vmap_decrement_nesting",
    "Grad": "_grad_decrement_nesting",
    "Jvp": "_jvp_decrement_nesting",
    "Functionalize": "_func_decrement_nesting",
}
"""Kind of transform → the function of functorch that ends the innermost one."""


@contextmanager
def vmap_or_nothing() -> Iterator[None]:
    """Inside the block vmap raises RuntimeError for an operation that it could only run in a loop, with a warning.

    The loop of this package is faster. The switch belongs to the whole process; a torch without the switch loops.
    """
    functorch = _functorch()
    is_enabled = getattr(functorch, "_is_vmap_fallback_enabled", None)
    enable = getattr(functorch, "_set_vmap_fallback_enabled", None)
    if is_enabled is None or enable is None:
        yield
        return
    enabled = is_enabled()
    enable(False)
    try:
        yield
    finally:
        enable(enabled)


def without_rule_of_vmap(error: BaseException) -> str | None:
    """The operation, such as `aten::frexp`, that vmap could only run in a loop; None of another exception."""
    name, found, _ = str(error).partition(" hit the vmap fallback which is currently disabled")
    return name if found else None


def _length(of_stack: str) -> int:
    length = getattr(torch._C, of_stack, None)
    return 0 if length is None else int(length())


def _functorch() -> Any:
    return getattr(torch._C, "_functorch", None)
