"""Whether torch itself has raised an exception, and which of its functions had been called with what."""

from __future__ import annotations

import dis
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from traceback import walk_tb
from types import CodeType, TracebackType
from typing import Any, NamedTuple

import torch
from torch.autograd import Function
from torch.overrides import TorchFunctionMode, resolve_name

from torch_gradcheck.torch_internals.code_lines import is_of_the_user, is_of_torch
from torch_gradcheck.torch_internals.devices import is_out_of_memory

HOME = Path(torch.__path__[0]).resolve()

KINDS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, AssertionError)
"""What torch raises where it is given what it cannot use. Subclasses say something else: that memory ran out, that a
device failed, that a matrix is singular."""

OF_A_DEVICE = ("CUDA error", "HIP error", "XPU error", "MPS backend", "device-side assert", "NCCL", "CUBLAS_STATUS")
"""Begins what is said of a device that failed, where torch has no class for it."""

RAISES = ("RAISE_VARARGS", "RERAISE")
"""The instructions of Python's `raise`."""

OTHER_ROOMS = ("distributions", "distributed", "autograd", "jit", "_dynamo", "optim", "testing", "__init__.py")
"""What in torch's folder raises for other reasons than what an operation is given. `__init__.py` and `testing` raise
what the user asserts: `torch._check(condition, message)`, `torch.testing.assert_close`."""

OF_MODULES = ("nn", "modules", "module.py")
"""The file of `nn.Module`, which raises for names and states that it is given; a missing forward alone is a call."""

WITHOUT_FORWARD = "_forward_unimplemented"
"""The function of torch that stands in for the forward of a module which has none."""

OF_GRAPHS = ("requires grad", "require grad", "in-place operation", "inplace operation", "Inference tensors", "grad_fn")
"""Is in what torch says of graphs, and not of what an operation is given."""

OF_ARGUMENTS = re.compile(r"^(\w+)\(\): argument '\w+'|^(\w+)\(\) received an invalid combination of arguments")
"""How torch begins where an argument is of another type than it takes, before any watch sees the call."""

RUNS_A_BACKWARD = "_engine_run_backward"
"""The function of torch through which every backward goes."""


class RefusedCall(NamedTuple):
    """A call of a function of torch's that an exception came out of.

    Attributes:
        function: its name, as `"torch.matmul"`.
        args, kwargs: what it was given.
    """

    function: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class CallWatch(TorchFunctionMode):
    """Notes the innermost call of torch that the last exception has come out of: code may catch those before it."""

    def __init__(self) -> None:
        super().__init__()
        self._noted: tuple[Exception, RefusedCall] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except Exception as error:
            if self._noted is None or self._noted[0] is not error:
                name = resolve_name(func) or getattr(func, "__name__", "torch")
                self._noted = error, RefusedCall(name, args, kwargs or {})
            raise

    def refused(self, error: Exception) -> RefusedCall | None:
        """The call that an exception has come out of, None where there is none; forgets it."""
        noted, self._noted = self._noted, None
        return noted[1] if noted is not None and noted[0] is error else None


def may_be_torchs(error: BaseException) -> bool:
    """Whether torch may have raised an exception because of what an operation was given, and not in a backward."""
    return not has_run_a_backward(error) and may_be_of_an_operation(error)


def has_run_a_backward(error: BaseException) -> bool:
    """Whether an exception has come out of a backward."""
    return RUNS_A_BACKWARD in [code.co_name for code in codes_of(error)]


def may_be_of_an_operation(error: BaseException) -> bool:
    """Whether torch may have raised an exception because of what an operation was given, wherever it was.

    False where memory ran out, where a device failed, where torch speaks of graphs, where a generator of the user's has
    ended in an iteration of torch's, and where code that is not of its operations and layers says `raise`.
    """
    codes = codes_of(error)
    if isinstance(error.__cause__, StopIteration) or type(error) not in KINDS or not codes:
        return False
    if raises_itself(error) and not _is_of_operations(codes[-1]):
        return False
    said = str(error)  # only now: the text of an error that the user raises may be the user's code
    is_of_other_things = said.startswith(OF_A_DEVICE) or any(words in said for words in OF_GRAPHS)
    return not is_of_other_things and not is_out_of_memory(error)


def comes_from_torch(error: BaseException) -> bool:
    """Whether the innermost Python function that an exception has come through is torch's, or it says that it is."""
    codes = codes_of(error)
    return bool(codes) and (_is_of_operations(codes[-1]) or OF_ARGUMENTS.match(str(error)) is not None)


def lacks_backward(error: BaseException) -> bool:
    """Whether torch has raised an exception because an operation's own backward has no kernel for such tensors.

    Its words name an operation that a backend does not have, or sparse tensors, and no Function of the user's has run.
    """
    codes = codes_of(error)
    runs = [k for k, code in enumerate(codes) if code.co_name == RUNS_A_BACKWARD]
    if not runs or type(error) not in KINDS or any(is_of_the_user(code) for code in codes[runs[-1] :]):
        return False
    said = str(error)
    return said.startswith("Could not run 'aten::") or "sparse" in said.lower()


def without_backward(error: BaseException) -> str | None:
    """The name of the autograd.Function without a backward for which torch has raised an exception; None of another."""
    last = _innermost(error)
    if type(error) is not NotImplementedError or last is None or last.tb_frame.f_code is not Function.backward.__code__:
        return None
    return str(getattr(type(last.tb_frame.f_locals.get("ctx")), "_forward_cls", Function).__name__)


WITHOUT_FORMULA = re.compile(r"^Trying to backward through ([\w.]+) but no autograd formula was registered")
"""What torch says of an operator of torch.library for which no backward was registered."""


def operator_without_backward(error: BaseException) -> str | None:
    """The operator of torch.library without a backward for which torch has raised an exception; None of another."""
    found = WITHOUT_FORMULA.match(str(error)) if type(error) is RuntimeError else None
    return None if found is None else "::".join(found[1].split(".")[:2])


def has_no_forward(error: BaseException) -> bool:
    """Whether torch has raised an exception because a module that was called has no forward."""
    last = _innermost(error)
    return last is not None and last.tb_frame.f_code.co_name == WITHOUT_FORWARD and raises_itself(error)


def _is_of_operations(code: CodeType) -> bool:
    """Whether code is torch's, and of a room that has operations and layers."""
    if not is_of_torch(code):
        return False
    parts = Path(code.co_filename).resolve().relative_to(HOME).parts
    return parts[0] not in OTHER_ROOMS and (parts != OF_MODULES or code.co_name == WITHOUT_FORWARD)


def is_raised_by_the_user(error: BaseException) -> bool:
    """Whether code of the user's has raised an exception by `raise`, and neither torch nor Python itself."""
    codes = codes_of(error)
    return not codes or (raises_itself(error) and is_of_the_user(codes[-1]))


def raises_itself(error: BaseException) -> bool:
    """Whether the innermost Python function that an exception has come through has raised it by `raise`."""
    last = _innermost(error)
    return last is not None and dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] in RAISES


def refused_call(error: Exception, again: Callable[[], object]) -> RefusedCall | None:
    """The call of torch that raised; None where torch did not raise, or where it does not raise the same again.

    Args:
        error: what was raised, which `may_be_torchs`.
        again: does once more what has raised it.
    """
    watch = CallWatch()
    try:
        with warnings.catch_warnings(), watch:
            warnings.simplefilter("ignore")  # they have been shown
            again()
    except Exception as second:
        return call_of(error, second, watch.refused(second))
    return None


def call_of(error: Exception, second: Exception, refused: RefusedCall | None) -> RefusedCall | None:
    """The call that raised, of an exception, the one that came when it was done again, and what was noted then."""
    if type(second) is not type(error) or str(second) != str(error):
        return None
    parsed = OF_ARGUMENTS.match(str(error)) if isinstance(error, TypeError) else None
    if parsed is not None and refused is None:
        return RefusedCall(f"torch.{parsed[1] or parsed[2]}", (), {})
    code = codes_of(second)[-1]
    if not _is_of_operations(code) and code is not CallWatch.__torch_function__.__code__:
        return None
    return refused or RefusedCall(_called_by_user(second), (), {})


def _called_by_user(error: Exception) -> str:
    """The function of torch behind the last frame that is the user's, as "Normal.__init__"; "" where there is none."""
    codes = codes_of(error)
    last = max([k for k, code in enumerate(codes) if is_of_the_user(code)], default=len(codes))
    names = [code.co_qualname for code in codes[last + 1 :] if is_of_torch(code)]
    return names[0] if names else ""


def codes_of(error: BaseException) -> list[CodeType]:
    """The code that an exception has come through, the outermost first."""
    return [frame.f_code for frame, _ in walk_tb(error.__traceback__)]


def _innermost(error: BaseException) -> TracebackType | None:
    """The last thing that an exception has come through, where it was raised; None of one that was not."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last
