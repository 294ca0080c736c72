"""The DaemonSet controller: one pod on every node that the template fits.

Source: kubernetes/kubernetes ``pkg/controller/daemon/daemon_controller.go``, ``update.go``, ``util/daemonset_util.go``.
A DaemonSet with ``maxSurge`` is rolled without surge, one node at a time.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sandbox.controllers.matching import node_matches, scaled, untolerated
from sandbox.controllers.objects import (
    Object,
    is_deleting,
    is_finished,
    is_ready,
    meta,
    phase,
    pod_from,
    ready_for,
)
from sandbox.controllers.workloads.podcontrol import PodOwner
from sandbox.controllers.workloads.revisions import HASH_LABEL, current_revision, trim
from sandbox.kube.informers import Change

#: Tolerations that every daemon pod gets, whatever its template says.
AUTOMATIC_TOLERATIONS: tuple[Object, ...] = (
    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
    {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"},
    {"key": "node.kubernetes.io/disk-pressure", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "node.kubernetes.io/pid-pressure", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"},
)
HOST_NETWORK_TOLERATION: Object = {
    "key": "node.kubernetes.io/network-unavailable",
    "operator": "Exists",
    "effect": "NoSchedule",
}
GENERATION_ANNOTATION = "deprecated.daemonset.template.generation"
GENERATION_LABEL = "pod-template-generation"
WANTS_ZERO_FAULT = "plugin-wants-zero"
#: Real seconds between looks at the fault board, an in-memory dictionary.
FAULT_LOOK = 0.5


class DaemonSetController(PodOwner):
    """Keys are DaemonSets."""

    name = "daemonset-controller"
    kind = "DaemonSet"

    def wire(self) -> None:
        super().wire()
        self.revisions = self.watch("ControllerRevision")
        self.nodes = self.watch("Node", self._node_changed)

    async def run(self) -> None:
        watcher = asyncio.create_task(self._watch_fault())
        try:
            await super().run()
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _watch_fault(self) -> None:
        before = None
        while True:
            fault = self.context.settings.faults.active(WANTS_ZERO_FAULT)
            if fault != before:
                before = fault
                self._queue_all()
            await asyncio.sleep(FAULT_LOOK)

    def _queue_all(self) -> None:
        for daemonset in self.context.informers("DaemonSet").items():
            self.queue.add((meta(daemonset)["namespace"], meta(daemonset)["name"]))

    def _node_changed(self, change: Change, new: Object, old: Object | None) -> None:
        if change == "MODIFIED" and old is not None and _placement(old) == _placement(new):
            return
        self._queue_all()

    # --- which nodes -------------------------------------------------------------------------------------------

    def _fits(self, daemonset: Object, node: Object) -> tuple[bool, bool]:
        """``(should run, should go on running)`` on this node."""
        if self.context.settings.faults.active(WANTS_ZERO_FAULT) is not None and _is_device_plugin(daemonset):
            return False, False
        spec = daemonset["spec"]["template"]["spec"]
        if spec.get("nodeName") and spec["nodeName"] != meta(node)["name"]:
            return False, False
        if not node_matches(spec, node):
            return False, False
        tolerations = _tolerations(spec)
        taints = (node.get("spec") or {}).get("taints")
        may_stay = untolerated(taints, tolerations, ("NoExecute",)) is None
        return may_stay and untolerated(taints, tolerations, ("NoSchedule",)) is None, may_stay

    # --- reconcile ---------------------------------------------------------------------------------------------

    async def reconcile(self, key: tuple[str, str]) -> None:
        daemonset = self.live_owner(key)
        if daemonset is None:
            return
        digest = await current_revision(daemonset, self.revisions, self.kube)
        await self._manage(daemonset, digest)
        if (daemonset["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate":
            await self._roll(daemonset, digest)
        in_use = {(meta(pod).get("labels") or {}).get(HASH_LABEL, "") for pod in self.pods_of(daemonset)}
        await trim(daemonset, self.revisions, self.kube, in_use)
        await self._update_status(daemonset, digest)

    def _by_node(self, daemonset: Object) -> dict[str, list[Object]]:
        by_node: dict[str, list[Object]] = {}
        for pod in self.pods_of(daemonset):
            by_node.setdefault(_target_node(pod), []).append(pod)
        return by_node

    async def _manage(self, daemonset: Object, digest: str) -> None:
        by_node = self._by_node(daemonset)
        create: list[Object] = []
        delete: list[Object] = []
        for node in self.nodes.items():
            should_run, may_stay = self._fits(daemonset, node)
            pods = by_node.pop(meta(node)["name"], [])
            live: list[Object] = []
            for pod in pods:
                if is_deleting(pod):
                    continue
                if is_finished(pod):
                    text = f"Found {phase(pod).lower()} daemon pod {meta(pod)['namespace']}/{meta(pod)['name']}"
                    text += f" on node {meta(node)['name']}, will try to "
                    failed = phase(pod) == "Failed"
                    self.event(
                        daemonset,
                        "FailedDaemonPod" if failed else "SucceededDaemonPod",
                        text + ("kill it" if failed else "delete it"),
                        "Warning" if failed else "Normal",
                    )
                    delete.append(pod)
                else:
                    live.append(pod)
            if not may_stay:
                delete += live
            elif should_run and not pods:
                create.append(_daemon_pod(daemonset, meta(node)["name"], digest))
            elif len(live) > 1:
                delete += sorted(live, key=lambda pod: meta(pod)["creationTimestamp"])[1:]
        # Pods whose node is gone are left to PodGC; those not yet bound to it would stay Pending forever.
        delete += [pod for pods in by_node.values() for pod in pods if not pod["spec"].get("nodeName")]
        if delete:
            await self.delete_pods(daemonset, [pod for pod in delete if not is_deleting(pod)])
        failure = await self.create_pods(daemonset, create)
        if failure is not None:
            await self._update_status(daemonset, digest)
            raise failure

    async def _roll(self, daemonset: Object, digest: str) -> None:
        """Delete old pods, unavailable ones at once and available ones within ``maxUnavailable``."""
        desired = [node for node in self.nodes.items() if self._fits(daemonset, node)[0]]
        by_node = self._by_node(daemonset)
        rolling = (daemonset["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
        allowed = scaled(rolling.get("maxUnavailable"), len(desired), round_up=True, default=1)
        allowed = max(1, allowed)
        unavailable = 0
        at_once: list[Object] = []
        within_budget: list[Object] = []
        for node in desired:
            live = [pod for pod in by_node.get(meta(node)["name"], []) if not is_deleting(pod)]
            if not live:
                unavailable += 1
                continue
            pod = live[0]
            available = self._is_available(daemonset, pod)
            if not available:
                unavailable += 1
            if (meta(pod).get("labels") or {}).get(HASH_LABEL) != digest:
                (within_budget if available else at_once).append(pod)
        chosen = at_once + within_budget[: max(0, allowed - unavailable)]
        if chosen:
            await self.delete_pods(daemonset, chosen)

    def _is_available(self, daemonset: Object, pod: Object) -> bool:
        minimum = self.clock.real(daemonset["spec"].get("minReadySeconds") or 0)
        ready = ready_for(pod)
        if ready < 0:
            return False
        if ready < minimum:
            self.queue.add_after((meta(pod)["namespace"], meta(daemonset)["name"]), minimum - ready + 0.05)
            return False
        return True

    async def _update_status(self, daemonset: Object, digest: str) -> None:
        counts = dict.fromkeys(("desired", "current", "mis", "ready", "available", "updated"), 0)
        by_node = self._by_node(daemonset)
        for node in self.nodes.items():
            should_run, _ = self._fits(daemonset, node)
            pods = by_node.get(meta(node)["name"], [])
            if not should_run:
                counts["mis"] += bool(pods)
                continue
            counts["desired"] += 1
            if not pods:
                continue
            counts["current"] += 1
            newest = max(pods, key=lambda pod: (not is_deleting(pod), meta(pod)["creationTimestamp"]))
            if is_ready(newest):
                counts["ready"] += 1
                counts["available"] += self._is_available(daemonset, newest)
            counts["updated"] += (meta(newest).get("labels") or {}).get(HASH_LABEL) == digest
        status: dict[str, Any] = {
            "currentNumberScheduled": counts["current"],
            "numberMisscheduled": counts["mis"],
            "desiredNumberScheduled": counts["desired"],
            "numberReady": counts["ready"],
            "observedGeneration": meta(daemonset)["generation"],
        }
        optional = {
            "updatedNumberScheduled": counts["updated"],
            "numberAvailable": counts["available"],
            "numberUnavailable": counts["desired"] - counts["available"],
        }
        # The real API leaves these three out when they are 0, and clients read that as 0.
        status |= {name: count for name, count in optional.items() if count}
        for name in ("collisionCount", "conditions"):
            if name in (daemonset.get("status") or {}):
                status[name] = daemonset["status"][name]
        await self.write_status(daemonset, status)


def _placement(node: Object) -> tuple[Any, ...]:
    spec = node.get("spec") or {}
    return meta(node).get("labels"), spec.get("taints"), spec.get("unschedulable")


def _is_device_plugin(daemonset: Object) -> bool:
    template = daemonset["spec"]["template"]
    texts = [container.get("image", "") for container in template["spec"].get("containers") or []]
    texts += (meta(daemonset).get("labels") or {}).values()
    texts += ((template.get("metadata") or {}).get("labels") or {}).values()
    return any("nvidia-device-plugin" in text or "k8s-device-plugin" in text for text in texts)


def _tolerations(spec: Object) -> list[Object]:
    automatic = list(AUTOMATIC_TOLERATIONS)
    if spec.get("hostNetwork"):
        automatic.append(HOST_NETWORK_TOLERATION)
    own = list(spec.get("tolerations") or [])
    return own + [toleration for toleration in automatic if toleration not in own]


def _target_node(pod: Object) -> str:
    """The node that a daemon pod runs on, or is destined for while it waits for the scheduler."""
    if name := pod["spec"].get("nodeName"):
        return str(name)
    affinity = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    for term in affinity.get("nodeSelectorTerms") or []:
        for rule in term.get("matchFields") or []:
            if rule["key"] == "metadata.name" and rule["operator"] == "In":
                return str(rule["values"][0])
    return ""


def _daemon_pod(daemonset: Object, node: str, digest: str) -> Object:
    generation = (meta(daemonset).get("annotations") or {}).get(GENERATION_ANNOTATION) or meta(daemonset)["generation"]
    labels = {HASH_LABEL: digest, GENERATION_LABEL: str(generation)}
    pod = pod_from(daemonset["spec"]["template"], daemonset, labels=labels)
    spec = pod["spec"]
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    # The DaemonSet controller has already evaluated the template's own terms; the scheduler only keeps the node.
    affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {
        "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]
    }
    spec["tolerations"] = _tolerations(spec)
    return pod
