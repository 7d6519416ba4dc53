from __future__ import annotations

import re
from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.methods.choice import METHOD_NAMES
from torch_gradcheck.request import Request, callable_argument, validated_request

MODEL = nn.Linear(1, 1)
DEFAULTS: dict[str, Any] = {
    "gradients": None,
    "method": "auto",
    "eps": None,
    "tolerance": None,
    "include": None,
    "exclude": None,
    "mode": "eval",
    "dtype": torch.float64,
    "seed": 0,
    "progress": None,
    "perturb": 0.0,
    "hold_detached": False,
}


def asked(model: object = MODEL, **options: Any) -> Request:
    return validated_request(model, METHOD_NAMES, **{**DEFAULTS, **options})


@pytest.mark.parametrize(
    ("option", "value", "form"),
    [
        ("eps", 1, 1.0),
        ("eps", np.float32(0.5), 0.5),
        ("eps", torch.tensor(0.25), 0.25),
        ("tolerance", 0.5, 0.5),
        ("tolerance", None, 1e-5),
        ("include", "a.*", ("a.*",)),
        ("include", ["a", "b"], ("a", "b")),
        ("exclude", ("a",), ("a",)),
        ("exclude", {"a"}, ("a",)),
        ("include", None, ()),
        ("mode", "keep", "keep"),
        ("method", "exact", "exact"),
        ("dtype", torch.float32, torch.float32),
        ("seed", 2**63 - 1, 2**63 - 1),
        ("progress", True, True),
        ("perturb", 0, 0.0),
        ("order", 2, 2),
        ("perturb", np.float32(0.5), 0.5),
    ],
)
def test_each_option_has_one_form(option: str, value: Any, form: Any) -> None:
    result = getattr(asked(**{option: value}), option)
    assert result == form
    assert type(result) is type(form)


@pytest.mark.parametrize(
    "mapping", [{}, OrderedDict(a=1), MappingProxyType({"a": 1})], ids=["dict", "ordered", "proxy"]
)
def test_gradients_are_any_mapping(mapping: Any) -> None:
    assert asked(gradients=mapping).gradients is mapping


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("gradients", [1], r"gradients must be .* got list \[1\]"),
        ("method", "fast", "method must be one of 'auto', 'exact'"),
        ("method", None, "method must be one of"),
        ("eps", 0, r"eps must be a positive finite number, got 0\.0"),
        ("eps", -1e-7, "eps must be a positive finite number"),
        ("eps", float("nan"), "eps must be a positive finite number, got nan"),
        ("eps", float("inf"), "eps must be a positive finite number, got inf"),
        ("eps", "1e-7", "eps must be a positive number, got str '1e-7'"),
        ("eps", True, "eps must be a positive number, got bool True"),
        ("eps", torch.ones(2), "eps must be a positive number, got Tensor"),
        ("eps", 1j, "eps must be a positive number"),
        ("include", [], "include is empty: leave it out"),
        ("include", [1], "include must be a glob pattern or a list of them"),
        ("exclude", 3, "exclude must be a glob pattern or a list of them, got int 3"),
        ("mode", "Eval", "mode must be one of 'eval', 'train', 'keep', got str 'Eval'"),
        ("dtype", torch.float16, r"dtype must be torch\.float64 or torch\.float32 .* got dtype torch\.float16"),
        ("dtype", "float64", "dtype must be"),
        ("seed", -1, "seed must be an integer from 0 to"),
        ("seed", 2**63, "seed must be an integer from 0 to"),
        ("seed", 1.0, "got float 1.0"),
        ("seed", True, "got bool True"),
        ("perturb", -0.1, r"perturb must be 0 or a positive finite number, got -0\.1"),
        ("perturb", float("inf"), "perturb must be 0 or a positive finite number, got inf"),
        ("perturb", float("nan"), "perturb must be 0 or a positive finite number, got nan"),
        ("perturb", "much", "perturb must be 0 or a positive number, got str 'much'"),
        ("perturb", True, "perturb must be 0 or a positive number, got bool True"),
        ("perturb", None, "perturb must be 0 or a positive number, got None"),
        ("order", 3, r"order must be 1 \(the gradient of J\) or 2 \(that of its slope\), got int 3"),
        ("order", 2.0, "got float 2.0"),
        ("order", True, "got bool True"),
        ("progress", 1, "progress must be True, False or None, got int 1"),
    ],
)
def test_an_option_that_cannot_be_used(option: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        asked(**{option: value})


@pytest.mark.parametrize("gradients", ["grad", {"weight": torch.ones(1, 1)}], ids=["in grad", "by hand"])
def test_gradients_that_are_given_are_of_first_order(gradients: Any) -> None:
    assert asked(gradients=gradients, order=1).order == 1
    with pytest.raises(InvalidRequestError, match="order=2 puts autograd's double backward on trial, and gradients="):
        asked(gradients=gradients, order=2)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear, r"model is the class Linear; give an instance: Linear\(\.\.\.\)"),
        (torch.sum, r"model must be a torch\.nn\.Module, got"),
        (None, r"model must be a torch\.nn\.Module, got None\."),
        (
            [nn.Linear(1, 1)] * 9,
            r"model must be a torch\.nn\.Module, got a list\. Put its modules into a torch\.nn\.Seq",
        ),
        (nn.Linear(9, 9).state_dict(), r"got an OrderedDict\. Is that a state_dict\?"),
    ],
    ids=["class", "function", "nothing", "list", "state"],
)
def test_a_model_that_is_none(model: object, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        asked(model)


def test_a_function_that_is_none() -> None:
    callable_argument("closure", print)
    with pytest.raises(InvalidRequestError, match="closure must be callable, got int 3"):
        callable_argument("closure", 3)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "got None. Where the model returns its loss, give `lambda loss: loss`; where there is no batch, use"),
        ("mse_loss", "got str 'mse_loss'. Give the function itself, not its name."),
        ((1, 2), "Is that the batch? The order is check_module(model, loss_fn, batch)."),
    ],
    ids=["nothing", "name", "batch"],
)
def test_what_was_meant_by_something_else_than_a_loss(value: object, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(words)):
        callable_argument("loss_fn", value)


@pytest.mark.parametrize(("value", "end"), [("trian", "; did you mean 'train'?"), ("?", "got str '?'.")])
def test_the_closest_choice_is_offered(value: str, end: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(end) + "$"):
        asked(mode=value)


def test_long_values_are_not_printed() -> None:
    with pytest.raises(InvalidRequestError, match=r"got a list\.$"):
        asked(gradients=list(range(1000)))


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        asked().eps = 1.0  # type: ignore[misc]
