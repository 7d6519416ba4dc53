"""The answer "J cannot be evaluated from a record", with the operation and module that stood in the way."""

from __future__ import annotations

from torch import nn


class Untraceable(Exception):  # noqa: N818 - an answer, not a fault: the eager engine takes over
    """J, or J as a function of one parameter, cannot be evaluated from a record; the eager engine can.

    Attributes:
        reason: one sentence, naming the operation where there is one.
        op: name of the operation; None where none is to blame.
        module: the innermost module that was running, whose qualified name the caller looks up; None without one.
    """

    def __init__(self, reason: str, *, op: str | None = None, module: nn.Module | None = None) -> None:
        where = f" (in {type(module).__name__})" if module is not None else ""
        super().__init__(reason + where)
        self.reason = reason
        self.op = op
        self.module = module

    def without_traceback(self) -> Untraceable:
        """The same answer, without the frames it came through and all that they refer to."""
        return Untraceable(self.reason, op=self.op, module=self.module)


class Strayed(Untraceable):
    """Away from θ, J reads another value than at θ to decide by; there it may be made of other operations.

    Attributes:
        upstream: positions of the parameters that the value depends on.
    """

    upstream: frozenset[int] = frozenset()
