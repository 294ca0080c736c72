"""The fault table: one function per way in which a Helm release gets stuck elsewhere.

Each injects its fault, states what must follow, and ends with a rerun whose outcome is read with kubectl
(``World.converge``): nothing pending, exactly one revision deployed, storage, ledger and objects agree.
"""

from tests.e2e.helm_faults import api, deaths, endings, remediation, waiting
from tests.e2e.helm_faults.table import TABLE, Fault

__all__ = ["TABLE", "Fault", "api", "deaths", "endings", "remediation", "waiting"]
