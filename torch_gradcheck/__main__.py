"""`python -m torch_gradcheck` is the command `torch-gradcheck`."""

from __future__ import annotations

import sys

from torch_gradcheck.command_line import main

if __name__ == "__main__":
    sys.exit(main())
