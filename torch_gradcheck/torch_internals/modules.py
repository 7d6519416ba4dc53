"""How torch calls modules: which one is running, which are compiled, and the calls of all of them replaced."""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from traceback import walk_tb
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

from torch_gradcheck.torch_internals.missing import internal
from torch_gradcheck.torch_internals.refused_calls import raises_itself

MODULE_FILE = nn.Module.__call__.__code__.co_filename
"""The file of `nn.Module`."""


def running_module() -> nn.Module | None:
    """The innermost module whose forward is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _calls_a_module(frame):
            return _module_of(frame)
        frame = frame.f_back
    return None


class ModuleCall(NamedTuple):
    """A call of a module.

    Attributes:
        module: what was called.
        args, kwargs: what it was called with.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def modules_in_traceback(error: BaseException) -> Iterator[nn.Module]:
    """The modules whose forward was running when an exception was raised, the outermost first."""
    return iter([call.module for call in calls_in_traceback(error)])


def calls_in_traceback(error: BaseException) -> list[ModuleCall]:
    """The calls of modules that were running when an exception was raised, the outermost first."""
    found = []
    for frame, _ in walk_tb(error.__traceback__):
        module = _module_of(frame) if _calls_a_module(frame) else None
        if module is not None:
            given = frame.f_locals
            found.append(ModuleCall(module, given.get("args", ()), given.get("kwargs", {})))
    return found


class VainCall(NamedTuple):
    """A call of a module in which Python could not call its forward, or a hook.

    Attributes:
        module: what was called.
        args, kwargs: what its forward is given, changed by hooks that came before.
        hook: the hook that was called last; None for none.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    hook: Callable[..., Any] | None


def called_in_vain(error: TypeError) -> VainCall | None:
    """The call of a module of which Python has said that forward, or a hook, takes other arguments; else None."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    if not frames or frames[-1].f_code.co_filename != MODULE_FILE or raises_itself(error):
        return None
    module, given = _module_of(frames[-1]), frames[-1].f_locals
    return (
        None
        if module is None or "args" not in given
        else VainCall(module, given["args"], given["kwargs"], given.get("hook"))
    )


def _calls_a_module(frame: FrameType) -> bool:
    return frame.f_code.co_name == "_call_impl"


def _module_of(frame: FrameType) -> nn.Module | None:
    module = frame.f_locals.get("self")
    return module if isinstance(module, nn.Module) else None


class Calls(NamedTuple):
    """What runs where a module is called, and where a torch.autograd.Function is applied, in the whole process.

    Attributes:
        module: `torch.nn.Module.__call__`.
        function: the class method that `Function.apply` of every Function ends in, also where it was fetched before, as
            by `swish = Swish.apply`; None: torch's own, see `torchs_apply`.
    """

    module: Any
    function: Any

    def applying(self, function: type[Function]) -> Callable[..., Any]:
        """What applies a Function, once `Function.apply` has put the arguments in order."""
        bound: Callable[..., Any]
        bound = torchs_apply(function) if self.function is None else self.function.__get__(None, function)
        return bound


def current_calls() -> Calls:
    """What runs at present."""
    return Calls(nn.Module.__call__, vars(_applying()).get("apply"))


def set_calls(calls: Calls) -> None:
    """Has these run from now on."""
    nn.Module.__call__ = calls.module  # type: ignore[method-assign]
    if calls.function is not None:
        _applying().apply = calls.function
    elif "apply" in vars(_applying()):
        del _applying().apply


def torchs_apply(function: type[Function]) -> Callable[..., Any]:
    """torch's own application of a Function, behind `Function.apply`."""
    found: Callable[..., Any] = super(_applying(), function).apply
    return found


APPLIES_IN_CPP = not isinstance(vars(Function).get("apply"), classmethod)
"""Whether `Function.apply` calls nothing that could be replaced, as from torch 2.15 on."""


def _applying() -> Any:
    """The class whose `apply` sees where Functions are applied.

    It is the one that `Function.apply` would call if it had one, the next in the order of inheritance. Where that is
    written in C++, it is `Function` itself, and an `apply` that was fetched before it was replaced goes unseen.
    """
    if APPLIES_IN_CPP:
        return Function
    return internal(torch.autograd.function, "_SingleLevelFunction", "see where Functions are applied")


def inner_modules(module: nn.Module) -> list[nn.Module]:
    """The modules that a module holds, as torch keeps them, past any `children()` or `modules()` of its class."""
    return [each for _, each in named_inner_modules(module)]


def named_inner_modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The same with the names that the module has for them; "" for what torch.compile has wrapped."""
    held = module._modules if isinstance(module, torch.jit.ScriptModule) else vars(module).get("_modules")
    named = [] if held is None else [(name, each) for name, each in held.items() if each is not None]
    return [("" if name == WRAPPED else name, each) for name, each in named]


def own_tensors(module: nn.Module) -> list[torch.Tensor]:
    """The parameters and buffers that are a module's own, as torch keeps them, past any `parameters()` of its class."""
    kept = [vars(module).get(name) for name in ("_parameters", "_buffers")]
    return [tensor for held in kept for tensor in (held or {}).values() if tensor is not None]


def is_made_of_code(kind: type) -> bool:
    """Whether the objects of a class hold code that torch has traced or compiled, or live in C++."""
    return any(str(cls.__module__).startswith(("torch.fx", "torch._C", "torch._dynamo")) for cls in kind.__mro__)


FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
"""The attributes of a module in which torch keeps the hooks that run with its forward."""


def is_set_up(module: nn.Module) -> bool:
    """Whether the constructor of modules has run; a class may forget to call it. Those of TorchScript keep no dict."""
    return "_modules" in vars(module) or isinstance(module, torch.jit.ScriptModule)


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether hooks run before or after the forward of a module."""
    return any(map(vars(module).get, FORWARD_HOOKS))


def has_hooks_on_all_modules() -> bool:
    """Whether a hook runs with the forward of every module of the process."""
    owner = torch.nn.modules.module
    return any(bool(getattr(owner, f"_global{name}", None)) for name in FORWARD_HOOKS)


def is_for_no_forward(attribute: str) -> bool:
    """Whether torch keeps in this attribute of a module what no forward asks for: hooks of backwards, of state_dict."""
    return attribute.startswith("_") and "hook" in attribute and attribute not in FORWARD_HOOKS


def forward_of_class(module: nn.Module) -> Any:
    """The forward that the class of a module has; where torch.jit has compiled it, what stands there for its code."""
    return inspect.getattr_static(type(module), "forward")


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile has compiled the model or a part of it."""
    compiled = (getattr(module, "_compiled_call_impl", None) for module in model.modules())
    return any(compiled) or any(uncompiled(module) is not module for module in model.modules())


def uncompiled(model: nn.Module) -> nn.Module:
    """The caller's own module, where `model` is what torch.compile has wrapped it in; else `model`."""
    return getattr(model, WRAPPED) if _is_wrapper(model) else model


def _is_wrapper(module: nn.Module) -> bool:
    """Whether a module is what torch.compile has wrapped another one in."""
    eval_frame = sys.modules.get("torch._dynamo.eval_frame")
    return isinstance(module, getattr(eval_frame, "OptimizedModule", ()))


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `model.named_modules()`, under the names that the modules have without torch.compile and data parallelism.

    A wrapper of these and the module in it have one name; the wrapper comes first.
    """
    plain = plain_names(model)
    yield from ((plain(name), module) for name, module in model.named_modules())


def module_at(model: nn.Module, name: str) -> nn.Module:
    """As `model.get_submodule(name)`, of a name of `named_modules`; of a wrapper and the module in it this one."""
    return dict(named_modules(model))[name]


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter under each of its names, those of `plain_names`."""
    plain = plain_names(model)
    yield from ((plain(name), each) for name, each in model.named_parameters(remove_duplicate=False))


def named_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """As `model.named_buffers()`, under the names of `plain_names`."""
    plain = plain_names(model)
    yield from ((plain(name), buffer) for name, buffer in model.named_buffers())


def plain_names(model: nn.Module) -> Callable[[str], str]:
    """The function that takes a qualified name in `model` to the one it has without torch.compile and data parallelism.

    A pattern or name that a user has copied from a compiled model, with `_orig_mod.` in it, is taken to the same, and
    one with the `module.` that DistributedDataParallel puts before the names of the module inside it.
    """
    modules = list(model.named_modules())
    if not [each for _, each in modules if isinstance(each, PARALLEL) or _is_wrapper(each)]:
        return lambda name: name
    parallel = {_uncompiled_parts(name) for name, each in modules if isinstance(each, PARALLEL)}

    def plain(name: str) -> str:
        parts = _uncompiled_parts(name)
        return ".".join([part for k, part in enumerate(parts) if part != INSIDE or parts[:k] not in parallel])

    return plain


def _uncompiled_parts(name: str) -> tuple[str, ...]:
    """The parts of a name without those that torch.compile puts in."""
    return tuple(part for part in name.split(".") if part not in (WRAPPED, ""))


INSIDE = "module"
"""The attribute in which data parallelism keeps the module."""

WRAPPED = "_orig_mod"
"""The attribute in which a wrapper of torch.compile keeps the module."""

PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)
"""What data parallelism wraps a model in, as its attribute `module`."""


def compiler_is_imported() -> bool:
    """Whether torch's compiler is loaded: without it nothing is compiled, and to load it takes two seconds."""
    return "torch._dynamo" in sys.modules


def has_backward_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks that see, and may change, the gradients of its outputs or inputs."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


@contextmanager
def with_backward_hooks(module: nn.Module, instead: Callable[[Any], Any]) -> Iterator[None]:
    """Inside the block a module has `instead(hook)` for each of its backward hooks, in the same order.

    The dictionaries of hooks are replaced and not written to: whoever restores the module's attributes restores them.
    """
    held = module._backward_hooks, module._backward_pre_hooks
    module._backward_hooks, module._backward_pre_hooks = (
        OrderedDict((number, instead(hook)) for number, hook in hooks.items()) for hooks in held
    )
    try:
        yield
    finally:
        module._backward_hooks, module._backward_pre_hooks = held


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a module is a normalization that keeps running statistics, which it only writes while it trains."""
    return isinstance(module, _NORMALIZATIONS)


def is_dropout(module: nn.Module) -> bool:
    """Whether a module zeroes entries at random with probability `module.p`."""
    return isinstance(module, _DROPOUTS)


_DROPOUTS: Any = getattr(nn.modules.dropout, "_DropoutNd", (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d))

_NORMALIZATIONS: Any = getattr(
    nn.modules.batchnorm, "_NormBase", (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
)

_SPECTRAL_NORM: Any = getattr(parametrizations, "_SpectralNorm", ())


def spectral_norms(module: nn.Module) -> Iterator[Any]:
    """The spectral norms of a module: itself, if it is the parametrization of one, and its forward pre-hooks.

    Each has the attribute `n_power_iterations`.
    """
    if isinstance(module, _SPECTRAL_NORM):
        yield module
    yield from (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, SpectralNorm))


def singular_vectors(module: nn.Module, norm: Any) -> list[Tensor]:
    """The buffers of a module in which one of its spectral norms keeps u and v, σ = uᵀWv."""
    names = ("_u", "_v") if norm is module else (f"{norm.name}_u", f"{norm.name}_v")
    return [buffer for name, buffer in module.named_buffers(recurse=False) if name in names]


class ParametrizationCache(NamedTuple):
    """The cache of `torch.nn.utils.parametrize.cached()`, a switch of the whole process.

    Attributes:
        enabled: how many blocks of `cached()` are open.
        values: what parametrizations have computed in them.
    """

    enabled: Any
    values: Any


NO_CACHE = ParametrizationCache(None, None)
"""Stands for the cache of a torch that keeps it elsewhere."""


def parametrization_cache() -> ParametrizationCache:
    """The cache as it is; `NO_CACHE` where this version of torch keeps it elsewhere."""
    return ParametrizationCache(getattr(parametrize, "_cache_enabled", None), getattr(parametrize, "_cache", None))


def set_parametrization_cache(cache: ParametrizationCache) -> None:
    """Puts a cache, `ParametrizationCache(0, {})` for none, in the place of the present one."""
    if NO_CACHE not in (cache, parametrization_cache()):
        parametrize._cache_enabled, parametrize._cache = cache
