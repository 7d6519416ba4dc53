"""Whether a candidate and a reference return the same: tensors of the same names, shapes and kinds of numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.precision.dtypes import is_inexact, name_of


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


def _forms(outputs: Mapping[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], bool]]:
    return {name: (tuple(each.shape), each.is_complex()) for name, each in outputs.items() if is_inexact(each)}


def _in_words(outputs: Mapping[str, torch.Tensor]) -> str:
    words = [f"{name} of shape {tuple(each.shape)} in {name_of(each.dtype)}" for name, each in outputs.items()]
    return ", ".join(words) or "no tensor"
