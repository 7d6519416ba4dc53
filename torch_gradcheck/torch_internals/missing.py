"""The guard around private names: one that this version of torch does not have is reported where it is used."""

from __future__ import annotations

from typing import Any

import torch


class MissingInTorchError(RuntimeError):
    """This version of torch does not have a private name that a check cannot do without."""


def internal(owner: Any, name: str, purpose: str) -> Any:
    """The attribute `name` of a module or class of torch.

    Args:
        owner: the module or class, such as `torch._C`.
        name: the private name.
        purpose: what a check needs it for, to follow "to" in the message.

    Raises:
        MissingInTorchError: this version of torch does not have it.
    """
    found = getattr(owner, name, None)
    if found is None:
        where = getattr(owner, "__name__", str(owner))
        raise MissingInTorchError(
            f"torch {torch.__version__} has no {where}.{name}, which torch_gradcheck needs to {purpose}: "
            "use a version of torch that torch_gradcheck was tested with."
        )
    return found
