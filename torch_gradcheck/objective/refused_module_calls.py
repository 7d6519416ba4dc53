"""Arguments that do not fit the forward of a module, or a hook: told with its line, its signature and what came."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from torch_gradcheck.objective.given import of_value
from torch_gradcheck.objective.refused_places import named_module
from torch_gradcheck.objective.signatures import callable_name, signature_of
from torch_gradcheck.torch_internals.code_lines import at_line_of, raising_line
from torch_gradcheck.torch_internals.function_calls import unbound
from torch_gradcheck.torch_internals.modules import called_in_vain, named_modules

MOST = 4
"""How many arguments of a call are told of."""


def of_module_call(error: Exception, model: nn.Module) -> str | None:
    """What does not fit where a module, or a hook of it, cannot take what it is called with; None of other errors."""
    found = called_in_vain(error) if isinstance(error, TypeError) else None
    names = {id(module): name for name, module in named_modules(model)}
    if found is None or id(found.module) not in names:
        return None
    named, line = named_module(names[id(found.module)], found.module), raising_line(error)
    if unbound(found.module.forward, *found.args, **found.kwargs):
        called = "" if line is None else f", called at {line},"
        return (
            f"{named}{called} was given {_in_words(found.args, found.kwargs)}, and its forward"
            f"{at_line_of(found.module.forward)} has the signature {signature_of(found.module.forward)} (Python says: "
            f"{error})."
        )
    return None if found.hook is None else _of_hook(named, found.hook, error)


def _of_hook(named: str, hook: Callable[..., Any], error: Exception) -> str:
    return (
        f"the forward hook {callable_name(hook).strip('<>')}{at_line_of(hook)} of {named} has the signature "
        f"{signature_of(hook)} (Python says: {error}). A forward hook takes the module, the tuple of inputs and the "
        "output, a forward pre-hook the module and the tuple of inputs."
    )


def _in_words(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What a module is called with, as "a tensor of shape (2, 3) and mask=None"."""
    given = [*map(of_value, args), *[f"{name}={of_value(each)}" for name, each in kwargs.items()]]
    return " and ".join(given[:MOST]) or "nothing"
