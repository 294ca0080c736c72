"""The one catalogue of reasons: every reason that the package gives itself, with what it means and what helps.

From it are made: which nodes may be quarantined (:data:`NODE_CAUSES`), the remedies of reports
(:mod:`gpu_fleet.core.reports.remedies`), and by ``tools/reason_docs.py`` the tables of ``docs/reference/reasons.md``
and ``docs/guides``. The words of other systems have tables of their own, next to the code that reads them, and the tool
lists those as well: ``core/aws/launch_errors.py``, ``core/releases/helm/symptoms.py``.

The same word may be the reason of several subjects (``NodeNotReady`` of a node under test and of a pod in a drain), so
a reason is unique within its section only.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpu_fleet.core.reasons import (
    admission,
    aws,
    capacity,
    checks,
    interruptions,
    nodes,
    pools,
    probes,
    provision,
    releases,
    runs,
    teardown,
)
from gpu_fleet.core.reasons.reason import Reason, Section

#: Validation: what fails a node, leaves it in doubt or busy, and what becomes of pools.
VALIDATION: tuple[Section, ...] = (
    nodes.NODE,
    probes.PROBES,
    probes.BUSY,
    probes.DOUBT,
    pools.POOL,
    pools.LEFT_NODES,
    admission.ADMISSION,
    checks.PASSED,
    checks.SKIPPED,
)
#: The other subjects, in the order of a lifecycle.
OTHERS: tuple[Section, ...] = (
    runs.RUNS,
    provision.PREFLIGHT,
    provision.KARPENTER,
    releases.STATES,
    releases.RELEASES,
    releases.WORKLOADS,
    capacity.CAPACITY,
    capacity.DEVICE_PLUGIN,
    runs.LEFT_DRIFTED,
    teardown.TEARDOWN,
    teardown.GATES,
    teardown.PODS,
    interruptions.INTERRUPTIONS,
    runs.GATES,
    runs.ACCESS,
    aws.OURS,
    aws.CODES,
    runs.ERRORS,
)
SECTIONS: tuple[Section, ...] = (*VALIDATION, *OTHERS)

#: Reasons of failures that lie in the node itself: another node of the pool would do better. Not among them is what
#: hits any node alike (a missing RuntimeClass, an image, a quota), what is over already (a node that vanished), and
#: what the probe itself did wrong.
NODE_CAUSES: frozenset[str] = frozenset(
    reason.name for section in VALIDATION for reason in section.reasons if reason.in_node
)


def _by_name() -> dict[str, Reason]:
    """Name -> the reason; of one that several sections have the first with a remedy, as in a report."""
    found: dict[str, Reason] = {}
    for section in SECTIONS:
        for reason in section.reasons:
            if reason.name not in found or (reason.remedy and not found[reason.name].remedy):
                found[reason.name] = reason
    return found


#: Name -> the reason as a report of a run means it.
BY_NAME: Mapping[str, Reason] = _by_name()
