"""How an operation's backward makes NaN or infinity: what its saved tensors hold where its derivative is singular."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torch_gradcheck.torch_internals.autograd import saved_by

Saved = Mapping[str, Any]
"""What an operation keeps for its backward, by name, such as `self`, `other`, `result`, `exponent`."""

Where = Callable[[Saved], Any]
"""The entries of which something holds, as a tensor of flags."""


@dataclass(frozen=True)
class Singularity:
    """Where the derivative of an operation is not finite.

    Attributes:
        where: the entries, from what the operation has saved.
        what: says of these entries what they are.
        derivative: the formula; "" where there is no short one.
        advice: what to do, where the result at these entries is not used.
    """

    where: Where
    what: str
    derivative: str
    advice: str = ""


@dataclass(frozen=True)
class Reason:
    """How an operation made a gradient NaN or infinite.

    Attributes:
        where: the singular entries, in the shape of what was saved.
        what, derivative, advice: of the singularity.
        factor: what the gradient is multiplied by there, "∞" or "NaN".
        stored: whether that was made in the forward, perhaps by another operation, and kept.
    """

    where: torch.Tensor
    what: str
    derivative: str = ""
    advice: str = ""
    factor: str = "∞"
    stored: bool = False


def operation_name(node: Any) -> str:
    """`sqrt` for SqrtBackward0, `linalg_vector_norm` for LinalgVectorNormBackward0, as torch calls the operation."""
    name = re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[0-9]D)(?=[A-Z])", "_", name).lower()


def reason_of(node: Any) -> Reason | None:
    """What the saved tensors of a node say about a singular derivative; None where they say nothing."""
    saved, name = saved_by(node), operation_name(node)
    for singularity in SINGULARITIES.get(name, ()):
        try:
            where = torch.as_tensor(singularity.where(saved))
        except (KeyError, TypeError, AttributeError, RuntimeError):  # saved under another name by this torch, or freed
            continue
        if bool(where.any()):
            undefined = not singularity.derivative and singularity is not OVERFLOW
            factor = "NaN" if undefined else "∞"
            return Reason(where, singularity.what, _filled(singularity.derivative, saved), singularity.advice, factor)
    return _not_finite_itself(saved)


def _not_finite_itself(saved: Saved) -> Reason | None:
    """An operation that has kept NaN or infinity, which it multiplies the gradient by."""
    for name, value in saved.items():
        if isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex()):
            where = ~torch.isfinite(value.detach())
            if bool(where.any()):
                what, factor = ("NaN", "NaN") if bool(torch.isnan(value.detach()).any()) else ("infinite", "∞")
                return Reason(where, f"its {_ROLES.get(name, name)} is {what}", factor=factor, stored=True)
    return None


_ROLES = {"self": "input", "result": "result", "other": "other operand", "output": "result"}


def _filled(formula: str, saved: Saved) -> str:
    exponent = saved.get("exponent")
    if "{p}" not in formula:
        return formula
    return formula.replace("{p}", "p" if exponent is None or not isinstance(exponent, int | float) else f"{exponent:g}")


def _at(value: float, name: str = "self") -> Where:
    return lambda saved: saved[name] == value


def _size_one(saved: Saved) -> Any:
    return saved["self"].abs() == 1


def _infinite(name: str) -> Where:
    return lambda saved: torch.isinf(saved[name])


def _low_power(saved: Saved) -> Any:
    exponent = saved["exponent"]
    exponent = torch.as_tensor(exponent)
    return (saved["self"] == 0) & ((exponent.real if exponent.is_complex() else exponent) < 1)


def _root_of_negative(saved: Saved) -> Any:
    exponent = torch.as_tensor(saved["exponent"])
    return (saved["self"] < 0) & (exponent != exponent.round())


def _not_a_number(saved: Saved) -> Any:
    return torch.isnan(saved["result"])


def _negative_base(saved: Saved) -> Any:
    return (saved["self"] < 0).expand_as(saved["result"]) & torch.is_tensor(saved["exponent"])


def _lone(saved: Saved) -> Any:
    return torch.isnan(saved["result"]) | torch.tensor(saved["self"].numel() == saved["result"].numel())


def _equal_neighbours(values: torch.Tensor) -> Any:
    return torch.isclose(values[..., 1:], values[..., :-1], rtol=1e-12, atol=0.0)


def _degenerate(saved: Saved) -> Any:
    return _equal_neighbours(saved["S"]) | (saved["S"][..., 1:] == 0)


_ZERO_BEFORE = "give {op} a harmless input there, before it is called, such as {op}(torch.where(x > 0, x, 1))"
_EPS = "add a small number under it"
_SAFE_DIVISOR = "put a harmless divisor in there, before dividing, such as x / torch.where(y != 0, y, 1)"
_ROW = "leave one entry of the row unmasked, or mask with a large negative number instead of −∞"
_LARGE = "limit what goes in, before the call, such as {op}(x.clamp(max=80))"

_ONES = (Singularity(_size_one, "its input is ±1", "1/√(1 − x²)", "keep the input inside, by a clamp before the call"),)
_LOGS = (Singularity(_at(0), "its input is 0", "1/x", _ZERO_BEFORE),)
OVERFLOW = Singularity(_infinite("result"), "it overflows to ∞", "", _LARGE)
_EXPONENTIALS = (OVERFLOW,)
_SOFTMAXES = (Singularity(_not_a_number, "a row is −∞ throughout, so that its result is 0/0", "", _ROW),)

SINGULARITIES: dict[str, tuple[Singularity, ...]] = {
    "sqrt": (
        Singularity(_not_a_number, "its input is negative", "", _ZERO_BEFORE),
        Singularity(_at(0, "result"), "its input is 0", "1/(2·√x)", _ZERO_BEFORE),
    ),
    "rsqrt": (Singularity(_infinite("result"), "its input is 0", "−1/(2·x·√x)", _ZERO_BEFORE),),
    "reciprocal": (Singularity(_infinite("result"), "its input is 0", "−1/x²", _SAFE_DIVISOR),),
    "log": _LOGS,
    "log2": _LOGS,
    "log10": _LOGS,
    "log1p": (Singularity(_at(-1), "its input is −1", "1/(1 + x)", _ZERO_BEFORE),),
    "xlogy": (Singularity(_at(0, "other"), "its second argument is 0", "x/y"),),
    "special_entr": (Singularity(_at(0), "its input is 0", "−log(x) − 1", _ZERO_BEFORE),),
    "pow": (
        Singularity(_root_of_negative, "its base is negative, its exponent no whole number", "", _ZERO_BEFORE),
        Singularity(_low_power, "its base is 0", "{p}·x^({p} − 1)", _ZERO_BEFORE),
        Singularity(_negative_base, "its base is negative, and the exponent has a gradient", "x^p·log(x)"),
    ),
    "div": (
        Singularity(lambda s: (s["other"] == 0) & (s["self"] == 0), "it divides 0 by 0", "1/y", _SAFE_DIVISOR),
        Singularity(_at(0, "other"), "it divides by 0", "1/y", _SAFE_DIVISOR),
    ),
    "asin": _ONES,
    "acos": _ONES,
    "atanh": (Singularity(_size_one, "its input is ±1", "1/(1 − x²)", _ONES[0].advice),),
    "erfinv": (Singularity(_size_one, "its input is ±1", "√π/2·exp(erfinv(x)²)", _ONES[0].advice),),
    "acosh": (Singularity(_at(1), "its input is 1", "1/√(x² − 1)", _ONES[0].advice),),
    "logit": (Singularity(lambda s: (s["self"] == 0) | (s["self"] == 1), "its input is 0 or 1", "1/(x·(1 − x))"),),
    "hypot": (Singularity(_at(0, "result"), "both inputs are 0", "x/√(x² + y²)", _EPS),),
    "std": (Singularity(_lone, "it is taken over a single entry", ""),),
    "var": (
        Singularity(
            lambda saved: torch.ones_like(saved["self"], dtype=torch.bool), "it is taken over a single entry", ""
        ),
    ),
    "exp": _EXPONENTIALS,
    "exp2": _EXPONENTIALS,
    "expm1": _EXPONENTIALS,
    "softmax": _SOFTMAXES,
    "log_softmax": _SOFTMAXES,
    "native_layer_norm": (
        Singularity(_infinite("result2"), "the variance is 0, with eps=0", "1/√var", "give it an eps"),
    ),
    "linalg_svd": (Singularity(_degenerate, "singular values are equal or 0", "1/(σᵢ² − σⱼ²)"),),
    "linalg_eigh": (
        Singularity(lambda s: _equal_neighbours(s["eigenvalues"]), "eigenvalues are equal", "1/(λᵢ − λⱼ)"),
    ),
}
"""The operations of torch whose derivative is not finite somewhere, by the name in their node."""
