"""How torch calls modules, and why a check needs it: naming the module at fault, recording calls, what is compiled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from torch_gradcheck.torch_internals import modules
from torch_gradcheck.torch_internals.modules import (
    NO_CACHE,
    Calls,
    ParametrizationCache,
    called_in_vain,
    current_calls,
    has_backward_hooks,
    has_forward_hooks,
    has_hooks_on_all_modules,
    inner_modules,
    is_compiled,
    is_dropout,
    is_for_no_forward,
    is_made_of_code,
    is_set_up,
    module_at,
    modules_in_traceback,
    named_buffers,
    named_inner_modules,
    named_modules,
    named_parameters,
    own_tensors,
    parametrization_cache,
    plain_names,
    running_module,
    set_calls,
    set_parametrization_cache,
    singular_vectors,
    spectral_norms,
    torchs_apply,
    uncompiled,
    with_backward_hooks,
)


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


class Inner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = running_module()
        return x


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")


def test_the_running_module_is_the_innermost() -> None:
    """An operation that cannot be recorded is named with the module it is in."""
    inner = Inner()
    Outer(inner)(torch.ones(1))
    assert inner.seen is inner
    del inner.seen
    assert running_module() is None


def test_the_modules_of_an_error_are_the_outermost_first() -> None:
    """An operation without a kernel is named with the module it is in."""
    model = Outer(Fails())
    with pytest.raises(ValueError, match="no") as error:
        model(torch.ones(1))
    assert list(modules_in_traceback(error.value)) == [model, model.inner]


@pytest.fixture
def calls() -> Iterator[Calls]:
    before = current_calls()
    yield before
    set_calls(before)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return 2 * g


def test_calls_of_all_modules_and_functions_can_be_replaced_and_come_back(calls: Calls) -> None:
    """The search for a culprit records every call of a run of J."""
    seen: list[Any] = []

    def module_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(module)
        return calls.module(module, *args, **kwargs)

    def apply(function: Any, *args: Any) -> Any:
        seen.append(function)
        return torchs_apply(function)(*args)

    double = Double.apply  # fetched before
    model, x = Outer(nn.Identity()), torch.ones(1, requires_grad=True)
    set_calls(Calls(module_call, classmethod(apply)))
    model((Double.apply if modules.APPLIES_IN_CPP else double)(x)).backward()
    assert seen == [Double, model, model.inner]
    assert x.grad is not None
    assert x.grad.tolist() == [2]
    set_calls(calls)
    assert current_calls() == calls
    model(Double.apply(x))
    assert len(seen) == 3


def test_functions_are_seen_where_torch_applies_them_in_cpp(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.15 does; what was fetched before is not seen there."""
    if not modules.APPLIES_IN_CPP:
        monkeypatch.delattr(torch.autograd.Function, "apply")
        monkeypatch.setattr(modules, "APPLIES_IN_CPP", True)
    seen: list[Any] = []

    def apply(function: Any, *args: Any) -> Any:
        seen.append(function)
        return torchs_apply(function)(*args)

    before = current_calls()
    x = torch.ones(1, requires_grad=True)
    set_calls(Calls(before.module, classmethod(apply)))
    Double.apply(x).backward()
    set_calls(before)
    assert x.grad is not None
    assert x.grad.tolist() == [2]
    Double.apply(x)
    assert seen == [Double]
    assert current_calls() == before


def test_a_module_that_was_compiled_in_place_is_compiled() -> None:
    """A compiled step is rounded in another way than the check's own run of it."""
    model = Outer(nn.Linear(1, 1))
    assert not is_compiled(model)
    model.inner.compile(backend="eager")
    assert is_compiled(model)


def test_a_wrapper_of_the_compilers_is_compiled_and_gives_the_model_back() -> None:
    """Names are those of the caller's own model."""
    model = nn.Linear(1, 1)
    wrapped: Any = torch.compile(model, backend="eager")
    assert is_compiled(wrapped)
    assert is_compiled(nn.Sequential(wrapped))
    assert uncompiled(wrapped) is model
    assert uncompiled(model) is model


@pytest.mark.slow
def test_the_compiler_is_imported_only_where_something_is_compiled() -> None:
    """Where it is not, a check saves two seconds."""
    script = """
import torch
from torch_gradcheck.torch_internals.modules import compiler_is_imported
assert not compiler_is_imported()
torch.compile(torch.nn.Linear(1, 1), backend="eager")(torch.ones(1))
assert compiler_is_imported()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)


def test_backward_hooks_of_a_module_are_seen() -> None:
    """A culprit that has one is told of it."""
    for register in (nn.Module.register_full_backward_hook, nn.Module.register_full_backward_pre_hook):
        module = nn.Linear(1, 1)
        assert not has_backward_hooks(module)
        register(module, lambda *_: None)
        assert has_backward_hooks(module)


@pytest.mark.parametrize(
    "module",
    [nn.Dropout(), nn.Dropout1d(), nn.Dropout2d(), nn.Dropout3d(), nn.AlphaDropout(), nn.FeatureAlphaDropout()],
)
def test_every_dropout_is_one(module: nn.Module) -> None:
    """A step that was not seen from its start is random where one is active."""
    assert is_dropout(module)
    assert module.p == 0.5
    assert not is_dropout(nn.ReLU())


NORMS = {
    "parametrization": (nn.utils.parametrizations.spectral_norm, lambda layer: layer.parametrizations.weight[0]),
    "hook": (nn.utils.spectral_norm, lambda layer: layer),
}


@pytest.mark.parametrize(("normed", "holder"), NORMS.values(), ids=NORMS)
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_a_spectral_norm_its_vectors_and_its_power_iterations_are_found(normed: Any, holder: Any) -> None:
    """Its iterations are held still while J is differentiated, as torch's backward takes its vectors for constants."""
    module = holder(normed(nn.Linear(3, 2)))
    (norm,) = spectral_norms(module)
    assert sorted(vector.numel() for vector in singular_vectors(module, norm)) == [2, 3]
    norm.n_power_iterations = 0
    layer, before = normed(nn.Linear(3, 2)), []
    for found in spectral_norms(holder(layer)):
        found.n_power_iterations = 0
        before = [vector.clone() for vector in singular_vectors(holder(layer), found)]
    layer.train()(torch.ones(1, 3))
    (norm,) = spectral_norms(holder(layer))
    assert all(map(torch.equal, before, singular_vectors(holder(layer), norm)))


def test_a_module_without_spectral_norm_has_none() -> None:
    assert list(spectral_norms(nn.Linear(2, 2))) == []


def test_the_cache_of_parametrizations_is_read_and_put_back() -> None:
    """Inside `parametrize.cached()` a moved parameter would not reach J."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with parametrize.cached():
        before, kept = layer.weight, parametrization_cache()
        assert kept.enabled == 1
        assert kept.values
        set_parametrization_cache(ParametrizationCache(0, {}))
        assert layer.weight is not before
        set_parametrization_cache(kept)
        assert layer.weight is before
    assert parametrization_cache() == ParametrizationCache(0, {})


def test_a_torch_that_keeps_the_cache_elsewhere_is_checked_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(parametrize, "_cache")
    monkeypatch.delattr(parametrize, "_cache_enabled")
    assert parametrization_cache() == NO_CACHE
    set_parametrization_cache(ParametrizationCache(0, {}))
    assert not hasattr(parametrize, "_cache")


def test_backward_hooks_can_be_wrapped_and_come_back_whatever_happens() -> None:
    """Only a hook that changes a gradient is at fault: the search for a culprit watches what each of them returns."""
    seen: list[str] = []
    model = nn.Tanh()
    model.register_full_backward_hook(lambda *_: seen.append("hook"))
    model.register_full_backward_pre_hook(lambda *_: seen.append("pre-hook"))
    held = model._backward_hooks, model._backward_pre_hooks

    def wrapped(hook: Any) -> Any:
        return lambda *arguments: (seen.append("wrapped"), hook(*arguments))[1]

    x = torch.ones(1, requires_grad=True)
    with with_backward_hooks(model, wrapped):
        model(x).sum().backward()
    with pytest.raises(ValueError, match="no"), with_backward_hooks(model, wrapped):
        raise ValueError("no")
    assert seen == ["wrapped", "pre-hook", "wrapped", "hook"]
    assert (model._backward_hooks, model._backward_pre_hooks) == held
    assert model._backward_hooks is held[0]


def test_names_of_a_compiled_model_are_those_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    model[0] = torch.compile(model[0], backend="eager")  # type: ignore[assignment]
    wrapped: Any = torch.compile(model, backend="eager")
    plain = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    assert list(dict(named_modules(wrapped))) == list(dict(plain.named_modules()))
    assert [name for name, _ in named_parameters(wrapped)] == [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in named_buffers(wrapped)] == [name for name, _ in plain.named_buffers()]
    assert plain_names(wrapped)("_orig_mod.0._orig_mod.*") == "0.*"


def test_names_of_a_model_in_data_parallelism_are_those_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    model.add_module("module", nn.Linear(1, 1))
    for wrapped in (nn.DataParallel(model), torch.compile(nn.DataParallel(model), backend="eager")):
        assert isinstance(wrapped, nn.Module)
        assert list(dict(named_modules(wrapped))) == ["", "0", "module"]
        assert list(dict(named_parameters(wrapped))) == ["0.weight", "0.bias", "module.weight", "module.bias"]
        assert plain_names(wrapped)("module.0.*") == "0.*"
        assert module_at(wrapped, "module") is model.module
        assert module_at(wrapped, "") is model


def test_a_users_own_attribute_of_the_compilers_name_stays() -> None:
    model = nn.Module()
    model._orig_mod = nn.Linear(1, 1)
    assert uncompiled(model) is model
    assert [name for name, _ in named_parameters(model)] == ["_orig_mod.weight", "_orig_mod.bias"]


class HidesItsParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.nothing = nn.Linear(1, 1), None
        self.register_module("empty", None)

    def children(self) -> Iterator[nn.Module]:
        raise NotImplementedError


def test_the_modules_inside_are_those_that_torch_keeps() -> None:
    module = HidesItsParts()
    assert inner_modules(module) == [module.part]
    assert inner_modules(nn.Linear(1, 1)) == []
    assert named_inner_modules(module) == [("part", module.part)]


def test_own_tensors_are_those_that_a_module_has_registered() -> None:
    norm = nn.Sequential(nn.BatchNorm1d(2, affine=False))[0]
    assert own_tensors(norm) == list(norm.buffers())
    assert own_tensors(nn.Sequential(nn.Linear(1, 1))) == []


def test_hooks_of_the_forward_are_told_from_others() -> None:
    module = nn.Linear(1, 1)
    assert not has_forward_hooks(module)
    handle = module.register_forward_pre_hook(lambda *_: None)
    assert has_forward_hooks(module)
    handle.remove()
    module.register_full_backward_hook(lambda *_: None)
    assert not has_forward_hooks(module)
    names = {name for name in vars(module) if is_for_no_forward(name)}
    assert {"_backward_hooks", "_state_dict_hooks"} <= names
    assert not names & {"_forward_hooks", "_forward_pre_hooks", "_parameters", "training"}


def test_hooks_on_all_modules_are_noticed() -> None:
    assert not has_hooks_on_all_modules()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert has_hooks_on_all_modules()
    handle.remove()
    assert not has_hooks_on_all_modules()


def test_what_is_made_of_code() -> None:
    assert is_made_of_code(type(torch.fx.symbolic_trace(nn.Linear(1, 1))))
    assert not is_made_of_code(nn.Linear)


def test_a_module_that_has_not_called_its_constructor_is_known() -> None:
    class Forgets(nn.Module):
        def __init__(self) -> None:
            pass

    assert not is_set_up(Forgets())
    assert is_set_up(nn.Linear(2, 2))


def test_a_call_that_does_not_fit_is_told_from_others() -> None:
    def error_of(module: nn.Module, *args: Any) -> TypeError:
        with pytest.raises(TypeError) as caught:
            module(*args)
        return caught.value

    hooked, hook = nn.Tanh(), lambda module: None
    hooked.register_forward_hook(hook)
    for module in (nn.Tanh(), hooked):
        found = called_in_vain(error_of(module, 1, 2))
        assert found is not None
        assert (found.module, found.args, found.kwargs) == (module, (1, 2), {})
    found = called_in_vain(error_of(hooked, torch.ones(2)))
    assert found is not None
    assert found.hook is hook
    assert called_in_vain(error_of(nn.Tanh(), "x")) is None
