"""The graph that autograd has recorded, walked from results towards leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def nodes_from(starts: Iterable[Any]) -> Iterator[Any]:
    """Every node that can be reached from these, each once and as soon as it is met; None among them is no node."""
    waiting, seen = list(starts), set[Any]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]
