"""A snapshot of everything a check may not touch, compared to the bit."""

from __future__ import annotations

import gc
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.checkpoint  # torch 2.6 does not import it by itself
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.nn.utils import parametrize

Facts = dict[str, Any]


class Snapshot:
    """What `things` (models, tensors, optimizers, batches, hooks ...) and the process look like now."""

    def __init__(self, **things: Any) -> None:
        self._things = things
        self._alive: list[Any] = []  # an id means something only while its object lives
        self._facts = self._take()

    def changes(self) -> list[str]:
        """What is different now, a line each."""
        now = self._take()
        gone = [f"{path}: gone" for path in self._facts if path not in now]
        new = [f"{path}: new, {now[path]!r}"[:200] for path in now if path not in self._facts]
        different = [
            f"{path}: {before!r} -> {now[path]!r}"[:300]
            for path, before in self._facts.items()
            if path in now and now[path] != before
        ]
        return gone + new + different

    def _take(self) -> Facts:
        facts: Facts = {f"process.{name}": read() for name, read in PROCESS.items()}
        walk = _Walk(facts)
        for name, thing in self._things.items():
            walk.visit(name, thing)
        self._alive.append(walk.seen)
        return facts


class _Fact(NamedTuple):
    """A value to compare as it is, not an object to walk into."""

    value: Any


class _Walk:
    """Collects facts about objects and what they hold, each object once."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.seen: dict[int, Any] = {}

    def visit(self, path: str, thing: Any) -> None:
        self.facts[path] = thing.value if isinstance(thing, _Fact) else _scalar(thing)
        if id(thing) in self.seen or isinstance(thing, _Fact):
            return
        self.seen[id(thing)] = thing
        for name, part in _parts(thing):
            self.visit(f"{path}{name}", part)


def _scalar(thing: Any) -> Any:
    """A value for what has no identity worth keeping, the identity for the rest."""
    if thing is None or isinstance(thing, bool | int | str | bytes | complex | torch.dtype | torch.device | torch.Size):
        return (type(thing).__name__, thing)
    if isinstance(thing, float):
        return ("float", thing.hex())
    return (type(thing).__name__, id(thing))


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, Tensor):
        yield from _tensor_parts(thing)
    elif isinstance(thing, nn.Module | torch.optim.Optimizer):
        yield from _attributes(thing)
    elif isinstance(thing, dict):
        yield ".keys", _Fact([str(key) for key in thing])
        yield from ((f"[{key!r}]", value) for key, value in thing.items())
    elif isinstance(thing, list | tuple):
        yield ".length", _Fact(len(thing))
        yield from ((f"[{position}]", value) for position, value in enumerate(thing))
    elif isinstance(thing, torch.Generator):
        yield ".state", _Fact(thing.get_state().numpy().tobytes())
    elif isinstance(thing, np.random.Generator):
        yield ".state", _Fact(repr(thing.bit_generator.state))


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    yield ".attributes", _Fact(list(vars(thing)))
    yield from ((f".{name}", value) for name, value in vars(thing).items())


def _tensor_parts(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    yield ".facts", _Fact(_tensor_facts(tensor))
    yield ".hooks", _Fact(_hook_ids(tensor))
    yield ".base", tensor._base
    yield ".dict", vars(tensor)
    if tensor.layout is torch.strided:
        yield ".place", _Fact((tuple(tensor.stride()), tensor.storage_offset(), tensor.data_ptr()))
        yield ".bytes", _Fact(_storage_bytes(tensor))
    else:
        yield ".indices", _Fact(tensor._indices().tolist())
        yield ".values", _Fact(_storage_bytes(tensor._values()))
    if not tensor.is_inference():
        yield ".version", _Fact(tensor._version)
    if tensor.is_leaf:
        yield ".grad", tensor.grad


def _tensor_facts(tensor: Tensor) -> tuple[Any, ...]:
    parts = (type(tensor).__name__, tensor.dtype, tensor.layout, tuple(tensor.shape))
    return (*parts, tensor.grad_fn, *_tensor_flags(tensor))  # the node itself: unless held, its id changes


def _tensor_flags(tensor: Tensor) -> tuple[bool, ...]:
    return (
        tensor.requires_grad,
        tensor.is_leaf,
        tensor.retains_grad,
        tensor.is_inference(),
        tensor.is_conj(),
        tensor.is_neg(),
    )


def _hook_ids(tensor: Tensor) -> tuple[Any, ...]:
    kinds = (tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None))
    return tuple(None if hooks is None else tuple((key, id(hook)) for key, hook in hooks.items()) for hooks in kinds)


def _storage_bytes(tensor: Tensor) -> bytes:
    """Every byte of the storage, those between and around the tensor's entries included."""
    raw = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    return raw.numpy().tobytes()


def _parametrize_cache() -> tuple[Any, ...]:
    return (parametrize._cache_enabled, tuple(parametrize._cache))


def _global_module_hooks() -> tuple[Any, ...]:
    kinds: list[Mapping[int, Any]] = [
        nn_module._global_forward_hooks,
        nn_module._global_forward_pre_hooks,
        nn_module._global_backward_hooks,
        nn_module._global_backward_pre_hooks,
    ]
    return tuple(tuple((key, id(hook)) for key, hook in hooks.items()) for hooks in kinds)


def _threads() -> int:
    return sum(not isinstance(thread, threading.Timer) for thread in threading.enumerate())


PROCESS: dict[str, Callable[[], Any]] = {
    "torch random state": lambda: torch.get_rng_state().numpy().tobytes(),
    "numpy random state": lambda: (
        repr(np.random.get_state(legacy=False)["state"]["pos"])
        + np.random.get_state(legacy=False)["state"]["key"].tobytes().hex()
    ),
    "python random state": random.getstate,
    "default dtype": torch.get_default_dtype,
    "default device": lambda: str(torch.get_default_device()),
    "grad mode": torch.is_grad_enabled,
    "inference mode": torch.is_inference_mode_enabled,
    "anomaly mode": lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
    "autocast": lambda: (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
    "autocast cache": torch.is_autocast_cache_enabled,
    "deterministic": lambda: (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    ),
    "fill uninitialized": lambda: torch.utils.deterministic.fill_uninitialized_memory,
    "matmul precision": torch.get_float32_matmul_precision,
    "mha fast path": torch.backends.mha.get_fastpath_enabled,
    "mkldnn": lambda: (torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic),
    "cudnn": lambda: tuple(
        getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")
    ),
    "flush denormal": lambda: float(torch.tensor(1e-310, dtype=torch.float64) * 1) == 0,
    "sdp": lambda: (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
    ),
    "threads of torch": torch.get_num_threads,
    "multithreaded autograd": torch.autograd.is_multithreading_enabled,
    "checkpoint early stop": lambda: torch.utils.checkpoint._enable_checkpoint_early_stop,
    "torch function modes": torch._C._len_torch_function_stack,
    "dispatch modes": torch._C._len_torch_dispatch_stack,
    "parametrize cache": _parametrize_cache,
    "global module hooks": _global_module_hooks,
    "signal handlers": lambda: [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
    "threads": _threads,
    "warning filters": lambda: list(warnings.filters),
    "hooks of sys": lambda: (sys.excepthook, sys.stdout, sys.stderr, sys.getrecursionlimit()),
    "gc": gc.isenabled,
    "numpy errors": lambda: tuple(np.geterr().items()),
}
