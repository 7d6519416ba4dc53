"""Code that torch.compile makes: which of it a function calls, which of it runs compiled, and its caches put back."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import nn

from torch_gradcheck.torch_internals.missing import internal
from torch_gradcheck.torch_internals.modules import compiler_is_imported, running_module, uncompiled


@dataclass(frozen=True)
class CompiledCall:
    """Something that torch.compile was given, being called.

    Attributes:
        module: the module that was compiled; None for a function.
        function: the function that was compiled; the `forward` or so of a module.
        caller: the innermost module whose forward makes the call; None outside of every module.
        backend: the name of the backend, such as "inductor".
        code: what the compiler is to compile.
    """

    module: nn.Module | None
    function: Any
    caller: nn.Module | None
    backend: str
    code: CodeType

    @property
    def key(self) -> int:
        """Equal for two calls of the same thing, though the function be compiled anew for each."""
        return id(self.module if self.module is not None else getattr(self.function, "__code__", self.function))


def compiled_calls(
    runs_compiled: Callable[[CompiledCall], bool], raised: Callable[[torch.dtype], torch.dtype] | None = None
) -> AbstractContextManager[None]:
    """Asks at every call of what torch.compile was given whether it runs compiled, whatever the stance; else eagerly.

    What compiled code calls is a part of it: nothing is asked there. Does nothing where the compiler is not loaded.

    Args:
        runs_compiled: is asked.
        raised: takes each dtype that is named in the graphs to the one that the backend gets; None leaves them alone.
    """
    return _AskedCalls(runs_compiled, raised) if compiler_is_imported() else nullcontext()


class _AskedCalls:
    """The block of `compiled_calls`. A class and not a generator, which writes to an exception that passes."""

    def __init__(
        self, runs_compiled: Callable[[CompiledCall], bool], raised: Callable[[torch.dtype], torch.dtype] | None
    ) -> None:
        self._runs_compiled, self._raised = runs_compiled, raised
        self._owner: Any = sys.modules["torch._dynamo.eval_frame"]

    def __enter__(self) -> None:
        self._by_stance = internal(self._owner, "_callback_from_stance", "put compiled code on trial")
        self._owner._callback_from_stance = self._callback_for

    def __exit__(self, *exception: object) -> None:
        self._owner._callback_from_stance = self._by_stance

    def _callback_for(self, callback: Any) -> Any:
        call = _call_in(sys._getframe(1).f_locals)
        if call is None:
            return self._by_stance(callback)
        if not self._runs_compiled(call):
            return None
        _compile_apart()
        return callback if self._raised is None else _with_raised_graphs(callback, self._raised)


def _with_raised_graphs(callback: Any, raised: Callable[[torch.dtype], torch.dtype]) -> Any:
    """The callback of the same backend, which gets graphs that name other dtypes."""
    backend = _innermost_backend(callback)

    def of_raised(graph: Any, example_inputs: Any) -> Any:
        for part in graph.modules():
            if isinstance(part, torch.fx.GraphModule):
                _raise_graph(part, raised)
        return backend(graph, example_inputs)

    owner = sys.modules["torch._dynamo.eval_frame"]
    return internal(owner, "_create_wrapped_callback", "put compiled code with casts on trial")(of_raised)


def _raise_graph(module: torch.fx.GraphModule, raised: Callable[[torch.dtype], torch.dtype]) -> None:
    def of(argument: Any) -> Any:
        return raised(argument) if isinstance(argument, torch.dtype) else argument

    for node in module.graph.nodes:
        node.args = torch.fx.node.map_aggregate(node.args, of)
        node.kwargs = torch.fx.node.map_aggregate(node.kwargs, of)
        if node.op == "call_method" and node.target in _CASTS:
            node.args, node.target = (*node.args, raised(_CASTS[node.target])), "to"
    module.recompile()


_CASTS = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32}
"""Methods of tensors that cast, and to what."""


def compiler_switch() -> Any:
    """What decides whether a compiled function runs compiled; None where the compiler is not loaded."""
    return getattr(sys.modules.get("torch._dynamo.eval_frame"), "_callback_from_stance", None)


def set_compiler_switch(value: Any) -> None:
    """Has this decide from now on; None, from a time when the compiler was not loaded, changes nothing."""
    if value is not None:
        sys.modules["torch._dynamo.eval_frame"]._callback_from_stance = value  # type: ignore[attr-defined]


def _compile_apart() -> None:
    """What is compiled from here to the end of the call is kept apart, and counts towards no limit of the user's.

    Compiled code that is there already is found all the same. A torch before 2.13 knows no such place.
    """
    enter = getattr(_eval_frame(), "set_eval_frame_isolate_recompiles_id", None)
    if enter is not None:
        enter(APART)


APART = 2**30
"""The number of that place: those of regions that users isolate count from 0."""


def _call_in(names: dict[str, Any]) -> CompiledCall | None:
    """The call that a frame of torch.compile's wrapper makes; None for another frame."""
    callback = names.get("callback")
    if "fn" not in names or not callable(callback):
        return None
    function = inspect.unwrap(names["fn"])
    caller = running_module()
    held = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    module = held if isinstance(held, nn.Module) else None
    return CompiledCall(
        module, function, None if caller is None else uncompiled(caller), _backend_of(callback), names["fn"].__code__
    )


def _backend_of(callback: Any) -> str:
    backend = _innermost_backend(callback)
    name = getattr(backend, "compiler_name", None) or getattr(backend, "__name__", None) or type(backend).__name__
    return str(name)


def _innermost_backend(callback: Any) -> Any:
    while (inner := _inside(callback)) is not None:
        callback = inner
    return callback


def _inside(callback: Any) -> Any:
    """What a callback of dynamo wraps; None for a backend. torch 2.6 has another name for it."""
    return getattr(callback, "_torchdynamo_orig_backend", getattr(callback, "_torchdynamo_orig_callable", None))


# What compilation leaves ----------------------------------------------------------------------------------------------


@contextmanager
def compiler_as_it_was(draws_as_eager: bool) -> Iterator[None]:
    """Whatever is compiled inside the block is forgotten after it: code, counters, and which sizes were seen to vary.

    No limit on how often a function may be compiled holds in it, nor does it count towards one.

    Args:
        draws_as_eager: random numbers are drawn as eager code draws them, as far as the backend can.
    """
    with ExitStack() as stack:
        code, tables = CompiledCode(), _Tables()
        stack.callback(tables.restore)
        stack.callback(code.restore)
        stack.enter_context(_patched("torch._dynamo.config", _WHILE_COMPILING))
        if draws_as_eager and "torch._inductor" in sys.modules:
            stack.enter_context(_patched("torch._inductor.config", {"fallback_random": True}))
        yield


_WHILE_COMPILING = {
    "recompile_limit": 2**30,
    "accumulated_recompile_limit": 2**30,
    "automatic_dynamic_local_pgo": False,
    "automatic_dynamic_remote_pgo": False,
}
"""Settings of the compiler that keep it from giving up on a function, and from writing what it learns to disk."""

_IN_TORCH_2_6 = {"recompile_limit": "cache_size_limit", "accumulated_recompile_limit": "accumulated_cache_size_limit"}
"""The names that some of them have in torch 2.6."""


def _patched(module: str, settings: dict[str, Any]) -> AbstractContextManager[Any]:
    config: Any = sys.modules[module]
    named = {name if hasattr(config, name) else _IN_TORCH_2_6.get(name, name): settings[name] for name in settings}
    known = {name: value for name, value in named.items() if hasattr(config, name)}
    patch: AbstractContextManager[Any] = config.patch(known)
    return patch


class CompiledCode:
    """The compiled forms that there are of functions; `restore` drops those that were added since."""

    def __init__(self) -> None:
        self._before = {id(code): (code, [entry.code for entry in _entries(code)]) for code in _compiled_functions()}

    def ran(self, called: Sequence[CodeType]) -> bool:
        """Whether compiled code has run since: some was added, or there is some of the functions `called`."""
        return any(map(self._added, _compiled_functions())) or any(map(_entries, called))

    def restore(self) -> None:
        """Drops them: a function that had no compiled form before is as if it had never been called."""
        for code in _compiled_functions():
            if id(code) not in self._before:
                _eval_frame().reset_code(code)
                continue
            for entry in self._added(code):
                _drop(entry)

    def _added(self, code: CodeType) -> list[Any]:
        before = {id(each) for each in self._before[id(code)][1]} if id(code) in self._before else set()
        return [entry for entry in _entries(code) if id(entry.code) not in before]


def _compiled_functions() -> list[CodeType]:
    """The code of every function that the compiler has looked at and that is alive; equal code is distinct."""
    convert_frame: Any = sys.modules["torch._dynamo.convert_frame"]
    alive = (seen() for seen in internal(convert_frame, "input_codes", "put compiled code on trial").seen)
    return list({id(code): code for code in alive if code is not None}.values())


def _entries(code: CodeType) -> list[Any]:
    """The compiled forms of a function, those kept apart included; those that were dropped are left out."""
    frames = _eval_frame()
    of_region = getattr(frames, "_get_cache_entries_for_region", None)
    apart = of_region(code, APART) if of_region else []
    found = {id(entry.code): entry for entry in (*frames._debug_get_cache_entry_list(code), *apart)}
    return [entry for entry in found.values() if entry.code is not None]


def _drop(entry: Any) -> None:
    """Takes one compiled form out of the cache of its function, as the compiler does when a guarded object dies."""
    guards: Any = sys.modules["torch._dynamo.guards"]
    manager = entry.guard_manager
    manager.extra_state.invalidate(entry, guards.DeletedGuardManagerWrapper("compiled for a gradient check"))


def _eval_frame() -> Any:
    return torch._C._dynamo.eval_frame


class _Tables:
    """The counters and tables of the compiler, which users read, and which say what sizes it takes for variable."""

    def __init__(self) -> None:
        self._saved = [
            (module, name, copy.deepcopy(vars(module)[name]))
            for path, name in _TABLES
            if (module := sys.modules.get(path)) is not None and name in vars(module)
        ]

    def restore(self) -> None:
        """Puts back what has changed: the same objects, where they can be refilled."""
        for module, name, content in self._saved:
            now = vars(module)[name]
            if now == content:
                continue
            if isinstance(now, dict) and isinstance(content, dict):
                now.clear()
                now.update(content)
            elif isinstance(now, list):
                now[:] = content
            else:
                setattr(module, name, content)


_TABLES = (
    ("torch._dynamo.utils", "counters"),
    ("torch._dynamo.utils", "guard_failures"),
    ("torch._dynamo.utils", "compilation_time_metrics"),
    ("torch._dynamo.convert_frame", "FRAME_COUNTER"),
    ("torch._dynamo.convert_frame", "FRAME_COMPILE_COUNTER"),
    ("torch._dynamo.pgo", "_CODE_STATE"),
)
