"""Whether a candidate and a reference return the same: tensors of the same names, shapes and kinds of numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.precision.dtypes import is_inexact, name_of
from torch_gradcheck.reporting.words import listed


def check_alike(candidate: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> None:
    """Raises InvalidRequestError where the outputs of floating point or complex numbers differ in more than values.

    Args:
        candidate: its outputs by name.
        reference: those of the reference, in whatever precision.
    """
    if not any(is_inexact(each) for each in candidate.values()):
        raise InvalidRequestError(
            f"the candidate returns {_in_words(candidate)}: there is nothing of floating point or complex numbers to "
            "compare. Have it return what it computes, in tuples, lists, mappings or dataclasses."
        )
    if _forms(candidate) != _forms(reference):
        raise InvalidRequestError(
            f"reference returns {_in_words(reference)}, and the candidate {_in_words(candidate)}: both must return "
            "tensors of the same shapes in the same places. Wrap one of them in a function that does."
        )


def common_outputs(candidate: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of the outputs of floating point or complex numbers that both sides return, in the candidate's order.

    A model may return less than its reference: one that fuses its head with the loss has no logits. Functions whose
    outputs are given gradients of the check's own may not, see `check_alike`.

    Raises:
        InvalidRequestError: there are none, or those of one name differ in more than values.
    """
    theirs = _forms(reference)
    common = {name: form for name, form in _forms(candidate).items() if name in theirs}
    check_alike({name: candidate[name] for name in common or candidate}, {k: reference[k] for k in common or reference})
    return list(common)


def on_outputs(candidate: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> str:
    """The note on outputs that one side alone returns; "" where both return the same."""
    own, theirs = _forms(candidate), _forms(reference)
    alone = [
        f"{name} ({who} returns none)"
        for one, other, who in ((own, theirs, "the reference"), (theirs, own, "the candidate"))
        for name in one
        if name not in other
    ]
    return f"not compared: {listed(alone)}" if alone else ""


def _forms(outputs: Mapping[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], bool]]:
    return {name: (tuple(each.shape), each.is_complex()) for name, each in outputs.items() if is_inexact(each)}


def _in_words(outputs: Mapping[str, torch.Tensor]) -> str:
    words = [f"{name} of shape {tuple(each.shape)} in {name_of(each.dtype)}" for name, each in outputs.items()]
    return ", ".join(words) or "no tensor"
