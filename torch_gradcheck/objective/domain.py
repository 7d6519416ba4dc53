"""Where J is not defined: beside θ it raises, again and again, while at θ it does not."""

from __future__ import annotations

from collections.abc import Callable

from torch_gradcheck.borrowing.loan import Borrowed
from torch_gradcheck.errors import GradcheckError
from torch_gradcheck.torch_internals.devices import is_out_of_memory


class Domain:
    """Tells an exception at a θ that J is not defined at (a probability above 1, a scale below 0) from all others.

    Args:
        borrowed: the lent tensors, and what they hold at θ.

    Attributes:
        raised: kind of exception → its message where it was first seen beside θ.
    """

    def __init__(self, borrowed: Borrowed) -> None:
        self._borrowed = borrowed
        self.raised: dict[type[Exception], str] = {}

    def excludes(self, error: Exception, evaluate: Callable[[], object]) -> bool:
        """Whether J raised because of what the parameters hold now: it raises again here, and at θ it does not.

        Args:
            error: what it raised.
            evaluate: evaluates J.
        """
        if isinstance(error, GradcheckError) or is_out_of_memory(error) or not self._borrowed.is_moved():
            return False
        kind = type(error)
        if kind not in self.raised:
            if _raised(evaluate) is not kind:
                return False
            with self._borrowed.at_first():
                if _raised(evaluate) is not None:
                    return False
        self.raised.setdefault(kind, str(error))
        return True


def _raised(evaluate: Callable[[], object]) -> type[Exception] | None:
    try:
        evaluate()
    except Exception as error:
        return type(error)
    return None


def on_domain(domain: Domain) -> str:
    """The note on exceptions beside θ; "" where there were none."""
    if not domain.raised:
        return ""
    kind, message = next(iter(domain.raised.items()))
    words = message.strip().partition("\n")[0]
    return f"J raises {kind.__name__} ({words}) at some points beside θ, though not at θ: it counts as undefined there"
