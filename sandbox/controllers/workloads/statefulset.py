"""The StatefulSet controller: ordered pods with stable names.

Source: kubernetes/kubernetes ``pkg/controller/statefulset/stateful_set_control.go``. Volume claims are not made: the
sandbox has no storage.
"""

from __future__ import annotations

from typing import Any

from sandbox.controllers.objects import Object, is_deleting, is_finished, is_ready, meta, pod_from, ready_for
from sandbox.controllers.workloads.podcontrol import PodOwner
from sandbox.controllers.workloads.revisions import HASH_LABEL, current_revision, trim
from sandbox.kube.resources import ApiError


class StatefulSetController(PodOwner):
    """Keys are StatefulSets."""

    name = "statefulset-controller"
    kind = "StatefulSet"

    def wire(self) -> None:
        super().wire()
        self.revisions = self.watch("ControllerRevision")

    async def reconcile(self, key: tuple[str, str]) -> None:
        statefulset = self.live_owner(key)
        if statefulset is None:
            return
        revision = f"{key[1]}-{await current_revision(statefulset, self.revisions, self.kube)}"
        await self._step(statefulset, revision)
        in_use = {meta(pod)["labels"].get(HASH_LABEL, "") for pod in self.pods_of(statefulset)}
        await trim(statefulset, self.revisions, self.kube, in_use)
        await self._update_status(statefulset, revision)

    async def _step(self, statefulset: Object, revision: str) -> None:
        """One move: create or replace the first pod that needs it, else delete the last that is too many or old."""
        wanted = statefulset["spec"].get("replicas", 1)
        ordered = statefulset["spec"].get("podManagementPolicy", "OrderedReady") == "OrderedReady"
        pods = {_ordinal(pod): pod for pod in self.pods_of(statefulset)}
        for ordinal in range(wanted):
            pod = pods.get(ordinal)
            if pod is None:
                await self._create(statefulset, ordinal, revision)
                if ordered:
                    return
            elif is_finished(pod) and not is_deleting(pod):
                await self.delete_pods(statefulset, [pod])
                return
            elif ordered and (is_deleting(pod) or not self._is_available(statefulset, pod)):
                return
        for ordinal in sorted((each for each in pods if each >= wanted), reverse=True):
            if not is_deleting(pods[ordinal]):
                await self.delete_pods(statefulset, [pods[ordinal]])
            if ordered:
                return
        strategy = statefulset["spec"].get("updateStrategy") or {}
        if strategy.get("type", "RollingUpdate") != "RollingUpdate":
            return
        partition = (strategy.get("rollingUpdate") or {}).get("partition") or 0
        for ordinal in range(wanted - 1, partition - 1, -1):
            pod = pods.get(ordinal)
            if pod is None or is_deleting(pod):
                return
            if meta(pod)["labels"].get(HASH_LABEL) != revision:
                await self.delete_pods(statefulset, [pod])
                return
            if not self._is_available(statefulset, pod):
                return

    async def _create(self, statefulset: Object, ordinal: int, revision: str) -> None:
        name = f"{meta(statefulset)['name']}-{ordinal}"
        labels = {
            HASH_LABEL: revision,
            "statefulset.kubernetes.io/pod-name": name,
            "apps.kubernetes.io/pod-index": str(ordinal),
        }
        pod = pod_from(statefulset["spec"]["template"], statefulset, labels=labels)
        del pod["metadata"]["generateName"]
        pod["metadata"]["name"] = name
        pod["spec"]["hostname"] = name
        if statefulset["spec"].get("serviceName"):
            pod["spec"]["subdomain"] = statefulset["spec"]["serviceName"]
        try:
            await self.pods.caught_up(await self.create_pod(statefulset, pod))
        except ApiError as error:
            if not error.already_exists:
                raise

    def _is_available(self, statefulset: Object, pod: Object) -> bool:
        minimum = self.clock.real(statefulset["spec"].get("minReadySeconds") or 0)
        ready = ready_for(pod)
        if 0 <= ready < minimum:
            self.queue.add_after((meta(pod)["namespace"], meta(statefulset)["name"]), minimum - ready + 0.05)
        return ready >= minimum and ready >= 0

    async def _update_status(self, statefulset: Object, revision: str) -> None:
        pods = [pod for pod in self.pods_of(statefulset) if not is_finished(pod)]
        running = [pod for pod in pods if not is_deleting(pod)]
        updated = [pod for pod in running if meta(pod)["labels"].get(HASH_LABEL) == revision]
        wanted = statefulset["spec"].get("replicas", 1)
        old = statefulset.get("status") or {}
        ready = [pod for pod in running if is_ready(pod)]
        done = len(updated) == wanted == len(ready)
        current = revision if done else old.get("currentRevision", revision)
        status: dict[str, Any] = {
            "observedGeneration": meta(statefulset)["generation"],
            "replicas": len(pods),
            "availableReplicas": sum(self._is_available(statefulset, pod) for pod in running),
            "currentRevision": current,
            "updateRevision": revision,
            "collisionCount": 0,
        }
        counts = {
            "readyReplicas": len(ready),
            "updatedReplicas": len(updated),
            "currentReplicas": sum(meta(pod)["labels"].get(HASH_LABEL) == current for pod in running),
        }
        status |= {field: count for field, count in counts.items() if count}
        await self.write_status(statefulset, status)


def _ordinal(pod: Object) -> int:
    suffix = meta(pod)["name"].rpartition("-")[2]
    return int(suffix) if suffix.isdigit() else -1
