"""What kind of mistake a wrong gradient is: fits of the gradient on trial to the right one, each with its residual.

Knows no models: `diagnose` goes by the numbers of one parameter, `diagnose_all` by those of several at a time, which
see a norm clipped over all of θ, and confirm what one of them alone is too small to prove.
"""

from torch_gradcheck.diagnosis.diagnose import diagnose, diagnose_all
from torch_gradcheck.diagnosis.evidence import Evidence
from torch_gradcheck.diagnosis.factors import Meaning, count_meanings
from torch_gradcheck.diagnosis.picture import wrong_map
from torch_gradcheck.diagnosis.roundings import Rounding, rounding_of_all

__all__ = [
    "Evidence",
    "Meaning",
    "Rounding",
    "count_meanings",
    "diagnose",
    "diagnose_all",
    "rounding_of_all",
    "wrong_map",
]
