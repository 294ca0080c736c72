"""Uninstall one of the fleet's own releases, unless something else still needs it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gpu_fleet.operators.helm.releases.base import ReleaseOperator
from gpu_fleet.operators.teardown.looks import decide_again, still_needed
from gpu_fleet.operators.teardown.plan import karpenter_needed

if TYPE_CHECKING:
    from gpu_fleet.core.manifests.in_use import InUse

#: How long an uninstall looks in its worker for the last pods to disappear; a retry of the task looks again.
_GONE_WITHIN = timedelta(minutes=1)


class UninstallReleaseOperator(ReleaseOperator):
    """Uninstalls the component's release, resumes an interrupted uninstall, and waits until its objects are gone.

    Charts whose templates are CRDs are refused while objects of their kinds exist. The device plugin stays if the plan
    keeps it, or if something else uses it by now: see ``core/teardown/keeps.py``. Karpenter and its CRDs stay if a
    NodePool, EC2NodeClass or NodeOverlay of others was created after the plan: they are looked up again just before.

    :param keep_crds: leave CustomResourceDefinitions in the cluster.
    :param plan_task_id: the task whose plan decided on the device plugin; ``None`` outside a teardown.
    :raises PermanentError: ``NoPlan`` if that task has left none; ``KarpenterStillNeeded`` of Karpenter and its CRDs.
    :raises GateFailed: objects are still there (a finalizer, say); the message names them, a retry looks again.
    """

    def __init__(self, *, keep_crds: bool = False, plan_task_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keep_crds = keep_crds
        self.plan_task_id = plan_task_id

    def _in_use(self) -> InUse:
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.manifests.in_use import NOTHING_IN_USE

        return NOTHING_IN_USE  # a release that is removed needs to keep nothing

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        from gpu_fleet.core.teardown.keeps import stays

        if self.component == "device-plugin":
            if why := decide_again(self.spec, self.kube, context, self.plan_task_id).device_plugin:
                self.log.warning(stays("device plugin", why))
                return {"release": self._request().name, "kept": "InUse", "why": list(why)}
        elif needed := still_needed(self.spec, self.kube):
            raise karpenter_needed(self.spec, needed)
        engine = self._open(context)
        outcome = self._uninstall(engine, keep_crds=self.keep_crds, within=_GONE_WITHIN)
        for leftover in outcome.leftovers:
            self.log.warning("left in the cluster: %s", leftover)
        return self._finished(engine, outcome)
