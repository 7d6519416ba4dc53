"""The request of a check: every option validated and given one form, nothing computed yet."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

import torch

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.processes.team import Team
from torch_gradcheck.torch_internals.modules import is_set_up

Mode = Literal["eval", "train", "keep"]

Gradients = Mapping[str, Any] | Literal["grad"] | None

MODES = ("eval", "train", "keep")


TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-3}
"""The largest relative error that passes by default, in each precision of a check. In float32 differences of J seldom
resolve less than 1e-4."""

DTYPES = tuple(TOLERANCES)

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Request:
    """The options of a check, as `check_module` documents them.

    Attributes:
        beyond_rounding: the relative error of a candidate that passes beside what rounding explains: `tolerance` where
            that was given. Its default is that of differences, a hundred units in the last place of float32.
        has_reference: whether a reference was given.
        team: the ranks that share the work.
    """

    gradients: Gradients
    method: str
    eps: float | None
    tolerance: float
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    mode: Mode
    dtype: torch.dtype
    seed: int
    progress: bool | None
    perturb: float = 0.0
    hold_detached: bool = False
    order: int = 1
    beyond_rounding: float = 0.0
    has_reference: bool = False
    team: Team = field(default_factory=Team, compare=False, repr=False)


def validated_request(
    model: object,
    methods: Sequence[str],
    *,
    gradients: object = None,
    method: object = "auto",
    eps: object = None,
    tolerance: object = None,
    include: object = None,
    exclude: object = None,
    mode: object = "eval",
    dtype: object = torch.float64,
    seed: object = 0,
    progress: object = None,
    perturb: object = 0.0,
    hold_detached: object = False,
    order: object = 1,
    reference: object = None,
    team: Team | None = None,
) -> Request:
    """The validated request; `methods` are the names that `method` may be. What is left out is as in `check_module`.

    Without a `team` this process is alone.

    Raises:
        InvalidRequestError: an argument cannot be used; says which, what was found and what to do.
    """
    _module("model", model)
    if reference is not None:
        _beside_reference(reference, gradients, order, dtype)
    precision = _dtype(dtype)
    team = team or Team()
    return Request(
        gradients=_gradients(gradients),
        method=one_of("method", method, methods),
        eps=None if eps is None else positive_number("eps", eps),
        tolerance=_tolerance(tolerance, precision),
        include=_patterns("include", include),
        exclude=_patterns("exclude", exclude),
        mode=one_of("mode", mode, MODES),  # type: ignore[arg-type]
        dtype=precision,
        seed=_seed(seed),
        progress=_progress(progress) if team.leads else False,
        perturb=_perturb(perturb, gradients),
        hold_detached=_flag("hold_detached", hold_detached),
        order=_order(order, gradients),
        beyond_rounding=0.0 if tolerance is None else _tolerance(tolerance, precision),
        has_reference=reference is not None,
        team=team,
    )


def _beside_reference(reference: object, gradients: object, order: object, dtype: object) -> None:
    """Raises where an option does not go together with a reference, or this cannot be called."""
    function_argument(reference, "reference")
    if gradients is not None:
        raise InvalidRequestError("gradients= and reference= both say what is compared: leave one of them out.")
    if order != 1:
        raise InvalidRequestError("reference= compares gradients of first order: leave order out.")
    if dtype is not torch.float64:
        raise InvalidRequestError(
            "reference= is computed in float64, and the candidate in its own precision, that of its inputs and "
            f"parameters: leave dtype={dtype} out."
        )


def reference_module(reference: object) -> torch.nn.Module:
    """The reference of a model; raises unless it is a module."""
    if not isinstance(reference, torch.nn.Module):
        raise InvalidRequestError(
            f"reference must be a torch.nn.Module with the parameter names of model, got {_found(reference)}: for a "
            "function use check_function(function, inputs, reference=...)."
        )
    return reference


def no_reference_of_closure(reference: object) -> None:
    """Raises where a closure was given a reference."""
    if reference is not None:
        raise InvalidRequestError(
            "reference= needs a model and a batch that both computations are called with: use check_module(model, "
            "loss_fn, batch, reference=plain_model), or check_function."
        )


def callable_argument(name: str, value: object) -> None:
    """Raises when `value`, given as argument `name`, cannot be called, or would not run when it is."""
    if isinstance(value, type) and issubclass(value, torch.nn.Module):
        raise InvalidRequestError(f"{name} is the class {value.__name__}; give an instance: {value.__name__}(...).")
    if not callable(value):
        raise InvalidRequestError(f"{name} must be callable, got {_found(value)}.{_instead_of_function(name, value)}")
    if inspect.iscoroutinefunction(value) or inspect.isgeneratorfunction(value):
        word = "async" if inspect.iscoroutinefunction(value) else "yield"
        raise InvalidRequestError(
            f"{name} is a function with `{word}`, which does not run when it is called: give one that returns the loss."
        )


def _instead_of_function(name: str, value: object) -> str:
    """What was probably meant by something else than a function, as a sentence; "" where it cannot be told."""
    if isinstance(value, torch.optim.Optimizer):
        return f" That is an optimizer: give the function that computes the loss as {name}."
    if value is None and name == "loss_fn":
        return (
            " Where the model returns its loss, give `lambda loss: loss`; where there is no batch, use check_closure."
        )
    if isinstance(value, str):
        return " Give the function itself, not its name."
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return " That is a value: give the function that computes it, not what it returned."
    if isinstance(value, torch.Tensor | tuple | list | Mapping) and name == "loss_fn":
        return " Is that the batch? The order is check_module(model, loss_fn, batch)."
    return ""


def function_argument(function: object, name: str = "function") -> None:
    """Raises when `function`, given as argument `name`, cannot be called; says what to give for a Function's class."""
    kind = function if isinstance(function, type) else type(function)
    if issubclass(kind, torch.autograd.Function):
        raise InvalidRequestError(f"{name} is {_class_or_instance(function)}; give {kind.__name__}.apply.")
    callable_argument(name, function)


def _class_or_instance(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"an instance of {type(value).__name__}"


def closure_argument(closure: Callable[..., Any]) -> None:
    """Raises when a closure asks for arguments."""
    try:
        signature = inspect.signature(closure)
    except (TypeError, ValueError):  # built in
        return
    try:
        signature.bind()
    except TypeError as error:
        raise InvalidRequestError(
            f"closure must take no arguments, and has the signature {signature}: give `lambda: closure(...)`, "
            "or use check_module(model, loss_fn, batch)."
        ) from error


def _module(name: str, model: object) -> torch.nn.Module:
    if isinstance(model, type) and issubclass(model, torch.nn.Module):
        raise InvalidRequestError(f"{name} is the class {model.__name__}; give an instance: {model.__name__}(...).")
    if not isinstance(model, torch.nn.Module):
        raise InvalidRequestError(f"{name} must be a torch.nn.Module, got {_found(model)}.{_instead_of_model(model)}")
    if not is_set_up(model):
        kind = type(model).__name__
        raise InvalidRequestError(f"{name} ({kind}) is not set up: call super().__init__() in the __init__ of {kind}.")
    return model


def _instead_of_model(value: object) -> str:
    """What was probably meant by something else than a model, as a sentence; "" where it cannot be told."""
    if inspect.isroutine(value) or isinstance(value, functools.partial):
        return " A function is checked by check_function(function, inputs)."
    if isinstance(value, Mapping):
        return " Is that a state_dict? Load it: model.load_state_dict(...), and give the model."
    if isinstance(value, torch.optim.Optimizer):
        return " That is an optimizer: give the model that it trains."
    if isinstance(value, list | tuple) and any(isinstance(each, torch.nn.Module) for each in value):
        return " Put its modules into a torch.nn.Sequential, or give the one that calls them."
    return ""


def _gradients(value: object) -> Gradients:
    if value is None or isinstance(value, Mapping):
        return value
    if isinstance(value, str) and value == "grad":
        return "grad"
    raise InvalidRequestError(
        f'gradients must be None, "grad", or a mapping from parameter name to tensor or array, got {_found(value)}.'
    )


def one_of(name: str, value: object, choices: Sequence[str]) -> str:
    """`value`, which argument `name` is given; raises unless it is one of the choices."""
    if isinstance(value, str) and value in choices:
        return value
    close = get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    meant = f"; did you mean {close[0]!r}?" if close else "."
    raise InvalidRequestError(f"{name} must be one of {', '.join(map(repr, choices))}, got {_found(value)}{meant}")


def positive_number(name: str, value: object) -> float:
    """`value`, which argument `name` is given, as a float; raises unless it is positive and finite."""
    number = _number(name, value, "a positive number")
    if not (math.isfinite(number) and number > 0):
        raise InvalidRequestError(f"{name} must be a positive finite number, got {number!r}.")
    return number


def _number(name: str, value: object, wanted: str) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise InvalidRequestError(f"{name} must be {wanted}, got {_found(value)}.")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidRequestError(f"{name} must be {wanted}, got {_found(value)}.") from error


def _patterns(name: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple | set | frozenset) and all(isinstance(item, str) for item in value):
        if not value:
            raise InvalidRequestError(f"{name} is empty: leave it out, or name a glob pattern such as 'encoder.*'.")
        return tuple(value)
    raise InvalidRequestError(f"{name} must be a glob pattern or a list of them, got {_found(value)}.")


def _dtype(value: object) -> torch.dtype:
    if isinstance(value, torch.dtype) and value in DTYPES:
        return value
    allowed = " or ".join(map(str, DTYPES))
    raise InvalidRequestError(f"dtype must be {allowed} (the precision of the check), got {_found(value)}.")


def count(name: str, value: object, at_least: int) -> int:
    """`value`, which argument `name` is given; raises unless it is an integer that large."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= at_least:
        return value
    raise InvalidRequestError(f"{name} must be an integer from {at_least} on, got {_found(value)}.")


def _seed(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SEED:
        return value
    raise InvalidRequestError(f"seed must be an integer from 0 to {MAX_SEED}, got {_found(value)}.")


def _perturb(value: object, gradients: object) -> float:
    """`perturb` as a float; raises unless it is finite, at least 0, and 0 where the gradients are given."""
    perturb = _number("perturb", value, "0 or a positive number")
    if not (math.isfinite(perturb) and perturb >= 0):
        raise InvalidRequestError(f"perturb must be 0 or a positive finite number, got {perturb!r}.")
    if perturb and gradients is not None:
        given = '"grad"' if isinstance(gradients, str) else "those derived by hand"
        raise InvalidRequestError(
            f"perturb={perturb:g} moves θ, and gradients={given} belong to the model's own θ: leave one of them out."
        )
    return perturb


def _order(order: object, gradients: object) -> int:
    """`order`; raises unless it is 1 or 2, and 1 where the gradients are given."""
    if not isinstance(order, int) or isinstance(order, bool) or order not in (1, 2):
        raise InvalidRequestError(f"order must be 1 (the gradient of J) or 2 (that of its slope), got {_found(order)}.")
    if order == 2 and gradients is not None:
        given = '"grad"' if isinstance(gradients, str) else "those derived by hand"
        raise InvalidRequestError(
            f"order=2 puts autograd's double backward on trial, and gradients={given} are of first order: leave one of "
            "them out."
        )
    return order


def _progress(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise InvalidRequestError(f"progress must be True, False or None, got {_found(value)}.")


def _tolerance(value: object, precision: torch.dtype) -> float:
    if value is None:
        return TOLERANCES[precision]
    number = positive_number("tolerance", value)
    if number >= 1:
        raise InvalidRequestError(
            f"tolerance must be below 1, got {number:g}: the relative error ‖approx − grad‖ / (‖approx‖ + ‖grad‖) "
            "is never larger than 1, so that every gradient would pass."
        )
    return number


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise InvalidRequestError(f"{name} must be True or False, got {_found(value)}.")


def _found(value: object) -> str:
    """What was given, in words: its type and, where that is short, what it is."""
    if value is None:
        return "None"
    text, kind = repr(value), type(value).__name__
    article = "an" if kind[0] in "AEIOUaeiou" else "a"
    return f"{kind} {text}" if len(text) <= 60 else f"{article} {kind}"
