"""Kernels in low precision beside plain references: right twins, and wrong ones with exactly the rows they spoil."""

from tests.zoo.candidates.attention import attention
from tests.zoo.candidates.epilogues import epilogues
from tests.zoo.candidates.gates import gates
from tests.zoo.candidates.kernel import BFLOAT16, FLOAT16, FLOAT32, Draws, Kernel, Wrong
from tests.zoo.candidates.losses import losses
from tests.zoo.candidates.norms import norms
from tests.zoo.candidates.products import products
from tests.zoo.candidates.recurrences import recurrences
from tests.zoo.candidates.reductions import reductions

KERNELS: list[Kernel] = [
    *gates(),
    *epilogues(),
    *norms(),
    *reductions(),
    *products(),
    *attention(),
    *recurrences(),
    *losses(),
]
"""The table."""

__all__ = ["BFLOAT16", "FLOAT16", "FLOAT32", "KERNELS", "Draws", "Kernel", "Wrong"]
