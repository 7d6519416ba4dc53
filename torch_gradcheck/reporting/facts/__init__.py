"""What a check found, as typed frozen rows: one file a part, and their names here for all other rooms."""

from torch_gradcheck.reporting.facts.check import Facts
from torch_gradcheck.reporting.facts.contract import ContractEntry, ContractStatus
from torch_gradcheck.reporting.facts.diagnosis import Diagnosis, DiagnosisKind
from torch_gradcheck.reporting.facts.pairs import Pairs
from torch_gradcheck.reporting.facts.provenance import Provenance
from torch_gradcheck.reporting.facts.row import Coordinate, ParameterReport, Role, WrongMap, badness
from torch_gradcheck.reporting.facts.status import Status, Verdict

__all__ = [
    "ContractEntry",
    "ContractStatus",
    "Coordinate",
    "Diagnosis",
    "DiagnosisKind",
    "Facts",
    "Pairs",
    "ParameterReport",
    "Provenance",
    "Role",
    "Status",
    "Verdict",
    "WrongMap",
    "badness",
]
