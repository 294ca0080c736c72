"""Compares a cluster with its spec and reports every difference; changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import DriftFound, GateFailed, GpuFleetError, TransientError
from gpu_fleet.operators.base import FleetOperator
from gpu_fleet.operators.drifted import DRIFTED as DRIFTED_NODES
from gpu_fleet.operators.drifted import as_data

if TYPE_CHECKING:
    from gpu_fleet.core.nodes.drifted import DriftedNode
    from gpu_fleet.hooks.cluster.drift import DriftCheck

#: XCom keys: the differences, and what could not be compared; both are set also if the task fails.
DRIFT, UNREAD = "drift", "unread"
#: Reasons of the failures.
DRIFTED, UNKNOWN = "Drifted", "DriftUnknown"


class CheckDriftOperator(FleetOperator):
    """Compares the manifests and Helm releases of the cluster with the frozen spec: changed, deleted, added.

    Only what the spec manages is compared. Nothing is corrected: a run of ``gpu_lifecycle`` does that.

    Nodes that have drifted are reported separately (XCom ``drifted``) and do not fail the check: by default they stay
    until their jobs have ended, and people would soon ignore a check that fails as long as jobs run.

    :returns: ``{"compared": number of objects and releases, "drifted": nodes}``. The XCom ``drift`` lists
        the differences, each with kind, object, field, wanted and found; ``unread`` what could not be compared. All
        are set also if the task fails.
    :raises DriftFound: ``Drifted``; or ``DriftUnknown`` if something may not be read.
    :raises GateFailed: ``DriftUnknown`` for a cause that may pass; retried.
    """

    ui_color = "#fdf3e3"

    def act(self, context: Mapping[str, Any]) -> dict[str, int]:
        # Not at the top: parsing a DAG file would import all that is compared.
        from gpu_fleet.core.drift import MAX_LISTED, sentence
        from gpu_fleet.hooks.cluster.drift import DriftCheck

        check = DriftCheck(self.kube, self.spec).run()
        drifted = self._drifted_nodes(check)
        context["ti"].xcom_push(DRIFTED_NODES, as_data(drifted))
        context["ti"].xcom_push(DRIFT, [item.to_json() for item in check.drifts[:MAX_LISTED]])
        context["ti"].xcom_push(UNREAD, [item.to_json() for item in check.unread[:MAX_LISTED]])
        for note in check.notes:
            self.log.info("%s", note)
        for item in check.drifts:
            self.log.warning("%s", item)
        for unread in check.unread:
            self.log.warning("%s could not be compared: %s: %s", unread.object, unread.reason, unread.message)
        words = sentence(self.spec.name, check.drifts, check.unread)
        if check.drifts:
            raise DriftFound(words, reason=DRIFTED)
        if check.unread:
            kind = GateFailed if any(unread.transient for unread in check.unread) else DriftFound
            raise kind(words, reason=UNKNOWN)
        self.log.info("%s (%d objects and releases compared)", words, check.compared)
        return {"compared": check.compared, "drifted": len(drifted)}

    def _drifted_nodes(self, check: DriftCheck) -> list[DriftedNode]:
        from gpu_fleet.core.drift import Unread
        from gpu_fleet.hooks.cluster.drifted import look_at_nodes, own_pools

        try:
            drifted = look_at_nodes(self.kube, own_pools(self.spec)).drifted()
        except GpuFleetError as error:
            transient = isinstance(error, TransientError)
            check.unread.append(Unread("the pools' nodes", error.reason, error.message, transient=transient))
            return []
        for node in drifted:
            self.log.warning("%s", node)
        return drifted
