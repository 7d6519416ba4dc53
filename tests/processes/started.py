"""A program run as Python or torchrun starts it, in processes that have imported torch and have a group already."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest
import torch.distributed as dist


class Ended(NamedTuple):
    """The outcome of a program on one rank."""

    status: int
    out: str
    err: str


def started(folder: str, *words: str) -> Ended:
    """What `python WORDS` or `torchrun WORDS` does on this rank: WORDS are SCRIPT or `-m MODULE`, and arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "80")
        for name in ("init_process_group", "destroy_process_group"):
            patch.setattr(dist, name, lambda *_, **__: None)
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            status = _status_of(words)
        return Ended(status, out.getvalue(), err.getvalue())


def _status_of(words: tuple[str, ...]) -> int:
    is_module = words[0] == "-m"
    target, *arguments = words[1:] if is_module else words
    sys.argv = [target, *arguments]
    sys.path.insert(0, str(Path.cwd() if is_module else Path(target).parent))
    try:
        (runpy.run_module if is_module else runpy.run_path)(target, run_name="__main__")
    except SystemExit as left:
        return int(left.code or 0)
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return 1
    finally:
        del sys.path[0]
    return 0
