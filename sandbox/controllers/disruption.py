"""The disruption controller: keeps the status of PodDisruptionBudgets true.

Source: kubernetes/kubernetes ``pkg/controller/disruption/disruption.go``. ``observedGeneration`` is written at once:
while it is behind, the eviction API refuses with Retry-After 10.
"""

from __future__ import annotations

from sandbox.controllers.base import Controller
from sandbox.controllers.matching import scaled, selects
from sandbox.controllers.objects import (
    Object,
    age,
    condition,
    controller_of,
    is_deleting,
    is_finished,
    is_ready,
    meta,
    with_condition,
)
from sandbox.kube.informers import Change

#: Real seconds after which a pod whose eviction was granted, but which still exists, counts again.
DELETION_TIMEOUT = 120.0
SCALED_KINDS = ("ReplicaSet", "Deployment", "StatefulSet")


class DisruptionController(Controller):
    """Keys are PodDisruptionBudgets."""

    name = "disruption-controller"

    def wire(self) -> None:
        self.budgets = self.watch_keys("PodDisruptionBudget")
        self.pods = self.watch("Pod", self._pod_changed)
        for kind in SCALED_KINDS:
            self.watch(kind, self._scale_changed)

    def _pod_changed(self, change: Change, new: Object, old: Object | None) -> None:
        if change == "MODIFIED" and old is not None and _health(old) == _health(new):
            return
        for budget in self.context.informers("PodDisruptionBudget").items(meta(new)["namespace"]):
            selector = budget["spec"].get("selector")
            labels = [meta(each).get("labels") for each in (new, old) if each is not None]
            if any(selects(selector, each) for each in labels):
                self.queue.add((meta(budget)["namespace"], meta(budget)["name"]))

    def _scale_changed(self, change: Change, new: Object, old: Object | None) -> None:
        if change == "MODIFIED" and old is not None and old["spec"].get("replicas") == new["spec"].get("replicas"):
            return
        for budget in self.context.informers("PodDisruptionBudget").items(meta(new)["namespace"]):
            self.queue.add((meta(budget)["namespace"], meta(budget)["name"]))

    async def reconcile(self, key: tuple[str, str]) -> None:
        budget = self.budgets.get(key[1], key[0])
        if budget is None:
            return
        pods = [
            pod
            for pod in self.pods.items(key[0])
            if selects(budget["spec"].get("selector"), meta(pod).get("labels")) and not is_finished(pod)
        ]
        expected, desired = self._expectation(budget, pods)
        disrupted = self._disrupted(budget, pods)
        healthy = sum(is_ready(pod) and not is_deleting(pod) and meta(pod)["name"] not in disrupted for pod in pods)
        allowed = max(0, healthy - desired) if expected > 0 else 0
        enough = allowed > 0
        new = {
            "type": "DisruptionAllowed",
            "status": "True" if enough else "False",
            "reason": "SufficientPods" if enough else "InsufficientPods",
            "message": "",
            "observedGeneration": meta(budget)["generation"],
        }
        old_status = budget.get("status") or {}
        present = condition(budget, "DisruptionAllowed")
        conditions = old_status.get("conditions")
        if present is None or any(present.get(name) != value for name, value in new.items()):
            conditions = with_condition(conditions, new)
        status = {
            "expectedPods": expected,
            "currentHealthy": healthy,
            "desiredHealthy": desired,
            "disruptionsAllowed": allowed,
            "observedGeneration": meta(budget)["generation"],
            "conditions": conditions,
        }
        if disrupted:
            status["disruptedPods"] = disrupted
        await self.write_status(budget, status)

    def _expectation(self, budget: Object, pods: list[Object]) -> tuple[int, int]:
        """``(expectedPods, desiredHealthy)``."""
        minimum, maximum = budget["spec"].get("minAvailable"), budget["spec"].get("maxUnavailable")
        if maximum is None and isinstance(minimum, int):
            return len(pods), minimum
        expected = self._wanted_by_controllers(pods)
        if maximum is not None:
            return expected, max(0, expected - scaled(maximum, expected, round_up=True, default=0))
        return expected, scaled(minimum, expected, round_up=True, default=1)

    def _wanted_by_controllers(self, pods: list[Object]) -> int:
        """The replicas that the pods' controllers want together; a pod without one counts for itself."""
        wanted: dict[str, int] = {}
        for pod in pods:
            owner = controller_of(pod)
            if owner is None or owner["kind"] not in SCALED_KINDS:
                wanted[meta(pod)["uid"]] = 1
                continue
            scale = self.context.informers(owner["kind"]).get(owner["name"], meta(pod)["namespace"])
            above = controller_of(scale) if scale is not None else None
            if above is not None and above["kind"] == "Deployment":
                scale = self.context.informers("Deployment").get(above["name"], meta(pod)["namespace"]) or scale
            if scale is not None:
                wanted[meta(scale)["uid"]] = scale["spec"].get("replicas", 1)
        return sum(wanted.values())

    def _disrupted(self, budget: Object, pods: list[Object]) -> dict[str, str]:
        """Granted evictions whose pod's deletion is not seen yet."""
        live = {meta(pod)["name"]: pod for pod in pods}
        result = {}
        for name, since in ((budget.get("status") or {}).get("disruptedPods") or {}).items():
            pod = live.get(name)
            left = DELETION_TIMEOUT - age(since)
            if pod is not None and not is_deleting(pod) and left > 0:
                result[name] = since
                self.queue.add_after((meta(budget)["namespace"], meta(budget)["name"]), left + 0.1)
        return result


def _health(pod: Object) -> tuple[object, ...]:
    return meta(pod).get("labels"), is_ready(pod), is_deleting(pod), is_finished(pod), meta(pod).get("ownerReferences")
