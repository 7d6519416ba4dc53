"""Where the command begins: what its first word asks for. Only a check needs torch, which takes seconds to import."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch_gradcheck.command_line.compare import COMPARE, compare
from torch_gradcheck.command_line.exit_status import INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; under torchrun that of a check is the same one on all ranks.

    Args:
        arguments: the words behind the command's name; None takes them from the shell.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if words[:1] == [COMPARE]:
            return compare(words[1:])
        from torch_gradcheck.command_line.command import main as check  # imports torch
    except KeyboardInterrupt:
        print("torch-gradcheck: interrupted", file=sys.stderr)
        return INTERRUPTED
    return check(words)
