"""The scheduling loop: pending pods, most important first, each bound to its best node or reported unschedulable.

Source: kubernetes/kubernetes ``pkg/scheduler/schedule_one.go``. All pending pods are looked at again whenever something
changed that could let one of them fit; there is no back-off queue, since a look costs microseconds here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

import aiohttp

from sandbox.controllers.base import Controller
from sandbox.controllers.matching import node_term_matches, tolerates
from sandbox.controllers.objects import Object, condition, is_deleting, is_finished, meta
from sandbox.controllers.quantities import pod_requests
from sandbox.controllers.scheduling import preemption
from sandbox.controllers.scheduling.predicates import Refusal, refusal
from sandbox.controllers.scheduling.snapshot import NodeInfo, Snapshot, priority, uid
from sandbox.kube.informers import Change
from sandbox.kube.resources import ApiError
from sandbox.kube.times import now

log = logging.getLogger("sandbox.controllers")

NAME = "default-scheduler"
#: Real seconds to gather changes before a round, so that a burst of pods is one round.
GATHER = 0.005
#: Real seconds until a round is repeated when the API server refused something.
AGAIN = 0.5


class Scheduler(Controller):
    """One key, ``round``: all pending pods are decided together."""

    name = NAME
    workers = 1

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._pending: dict[str, Object] = {}
        self._assumed: dict[str, tuple[Object, str]] = {}
        self._left = False

    def wire(self) -> None:
        self.pods = self.watch("Pod", self._pod_changed)
        self.nodes = self.watch("Node", self._node_changed)
        self.budgets = self.watch("PodDisruptionBudget")

    def _pod_changed(self, change: Change, new: Object, old: Object | None) -> None:
        key = uid(new)
        if change == "DELETED" or new["spec"].get("nodeName") or is_finished(new):
            self._assumed.pop(key, None)
            was_pending = self._pending.pop(key, None) is not None
            # A pod that left a node, or arrived on one (affinity), may let others fit.
            if not was_pending or new["spec"].get("nodeName"):
                gone = change == "DELETED" or is_finished(new)
                arrived = old is None or not old["spec"].get("nodeName")
                self._left = self._left or gone
                if (gone or arrived or _labels_changed(old, new)) and self._pending:
                    self.queue.add("round")
            return
        if new["spec"].get("schedulerName", NAME) != NAME or is_deleting(new):
            self._pending.pop(key, None)
            return
        known = self._pending.get(key)
        self._pending[key] = new
        if known is None or known["spec"] != new["spec"] or meta(known).get("labels") != meta(new).get("labels"):
            self.queue.add("round")

    def _node_changed(self, change: Change, new: Object, old: Object | None) -> None:
        if change == "MODIFIED" and old is not None and _capacity(old) == _capacity(new):
            return
        if self._pending:
            self.queue.add("round")

    # --- one round ---------------------------------------------------------------------------------------------

    async def reconcile(self, key: Any) -> None:
        await asyncio.sleep(GATHER)
        snapshot = self._snapshot()
        for pod in sorted(self._pending.values(), key=lambda each: -priority(each)):  # stable: first come, first served
            if uid(pod) not in self._pending or uid(pod) in self._assumed:
                continue
            if self._left:  # there is room that was not there at the start of this round
                snapshot = self._snapshot()
            try:
                await self._schedule(pod, snapshot)
            except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
                self._assumed.pop(uid(pod), None)
                if not (isinstance(error, ApiError) and error.code in (404, 409)):
                    log.debug("scheduling %s failed: %r", meta(pod)["name"], error)
                self.queue.add_after(key, AGAIN)

    def _snapshot(self) -> Snapshot:
        self._left = False
        return Snapshot(self.nodes.items(), self.pods.items(), self._assumed)

    async def _schedule(self, pod: Object, snapshot: Snapshot) -> None:
        if pod["spec"].get("schedulingGates"):
            text = "Scheduling is blocked due to non-empty scheduling gates"
            await self._report(pod, "SchedulingGated", text)
            return
        refusals: dict[str, Refusal] = {}
        fitting: list[NodeInfo] = []
        promised = self._nominated(pod)
        for info in snapshot.nodes.values():
            # Room made by preemption is kept for the pod that it was made for.
            seen = info.plus(promised[info.name]) if info.name in promised else info
            objection = refusal(pod, seen, snapshot.replaced(seen) if len(seen.pods) != len(info.pods) else snapshot)
            if objection is None:
                fitting.append(info)
            else:
                refusals[info.name] = objection
        if fitting:
            await self._bind(pod, max(fitting, key=lambda info: _score(pod, info)), snapshot)
        else:
            await self._refuse(pod, snapshot, refusals)

    def _nominated(self, pod: Object) -> dict[str, list[Object]]:
        """Node to the other pending pods that are promised room there and are as important as this one."""
        found: dict[str, list[Object]] = {}
        for key, other in self._pending.items():
            node = (other.get("status") or {}).get("nominatedNodeName")
            if node and key != uid(pod) and priority(other) >= priority(pod):
                found.setdefault(node, []).append(other)
        return found

    async def _bind(self, pod: Object, info: NodeInfo, snapshot: Snapshot) -> None:
        namespace, name = meta(pod)["namespace"], meta(pod)["name"]
        self._assumed[uid(pod)] = (pod, info.name)
        await self.kube.bind(namespace, name, info.name, uid=uid(pod))
        snapshot.assume(pod, info.name)
        self.event(pod, "Scheduled", f"Successfully assigned {namespace}/{name} to {info.name}")

    async def _refuse(self, pod: Object, snapshot: Snapshot, refusals: dict[str, Refusal]) -> None:
        if not snapshot.nodes:
            await self._report(pod, "Unschedulable", "no nodes available to schedule pods")
            return
        message = _counted(len(snapshot.nodes), [reason for each in refusals.values() for reason in each.reasons])
        obstacle = preemption.not_eligible(pod, snapshot)
        nominate: str | None = None
        if obstacle is not None:
            message += f" preemption: {obstacle}"
        else:
            promised = snapshot
            for node, nominated in self._nominated(pod).items():
                if node in snapshot.nodes:
                    promised = promised.replaced(snapshot.nodes[node].plus(nominated))
            candidate, reasons = preemption.find(pod, promised, refusals, self.budgets.items())
            if candidate is None:
                message += f" preemption: {_counted(len(snapshot.nodes), reasons)}"
            else:
                nominate = candidate.node
                for victim in candidate.victims:
                    await self._displace(pod, victim, candidate.node)
        await self._report(pod, "Unschedulable", message, nominate)

    async def _displace(self, pod: Object, victim: Object, node: str) -> None:
        if is_deleting(victim):
            return
        text = f"Preempted by pod {uid(pod)} on node {node}"
        self.event(victim, "Preempted", text)
        reason = f"{NAME}: preempting to accommodate a higher priority pod"
        disruption = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": reason,
            "lastTransitionTime": now(),
        }
        namespace, name = meta(victim)["namespace"], meta(victim)["name"]
        try:
            await self.kube.patch(
                "Pod",
                name,
                {"status": {"conditions": [disruption]}},
                namespace,
                type="strategic",
                subresource="status",
            )
        except ApiError as error:
            if not error.not_found:
                raise
        await self.kube.delete("Pod", name, namespace, uid=uid(victim))

    async def _report(self, pod: Object, reason: str, message: str, nominate: str | None = None) -> None:
        """Write the pod's PodScheduled condition if it differs, and record the event."""
        present = condition(pod, "PodScheduled")
        nominated = (pod.get("status") or {}).get("nominatedNodeName")
        same = present is not None and (present.get("reason"), present.get("message")) == (reason, message)
        if same and nominate in (None, nominated):
            return
        body: dict[str, Any] = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
        unmoved = present is not None and present["status"] == "False"
        body["lastTransitionTime"] = present.get("lastTransitionTime") if present and unmoved else now()
        status: dict[str, Any] = {"conditions": [body]}
        if nominate is not None:
            status["nominatedNodeName"] = nominate
        answer = await self.kube.patch(
            "Pod", meta(pod)["name"], {"status": status}, meta(pod)["namespace"], type="strategic", subresource="status"
        )
        if uid(pod) in self._pending:
            self._pending[uid(pod)] = answer
        if reason == "Unschedulable":
            self.event(pod, "FailedScheduling", message, "Warning")


def _labels_changed(old: Object | None, new: Object) -> bool:
    return old is not None and meta(old).get("labels") != meta(new).get("labels")


def _capacity(node: Object) -> tuple[Any, ...]:
    spec = node.get("spec") or {}
    return (
        meta(node).get("labels"),
        spec.get("taints"),
        spec.get("unschedulable"),
        (node.get("status") or {}).get("allocatable"),
    )


def _counted(nodes: int, reasons: list[str]) -> str:
    """``0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.``"""
    counts = sorted(f"{count} {reason}" for reason, count in Counter(reasons).items())
    return f"0/{nodes} nodes are available: {', '.join(counts)}."


def _score(pod: Object, info: NodeInfo) -> tuple[Any, ...]:
    """Larger is better: tolerated soft taints, preferred affinity, then the node with more CPU and memory free."""
    tolerations = pod["spec"].get("tolerations") or []
    soft = sum(
        taint["effect"] == "PreferNoSchedule" and not any(tolerates(each, taint) for each in tolerations)
        for taint in (info.node.get("spec") or {}).get("taints") or []
    )
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    preferred = sum(
        each["weight"]
        for each in affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or []
        if node_term_matches(each["preference"], info.node)
    )
    used, wanted = info.used(), pod_requests(pod["spec"])
    free = 0.0
    for name in ("cpu", "memory"):
        total = info.allocatable.get(name, 0)
        if total:
            free += (total - used.get(name, 0) - wanted.get(name, 0)) / total
    # Names break ties, so that a run can be repeated; the first in the alphabet wins.
    return -soft, preferred, round(free, 6), tuple(-ord(letter) for letter in info.name)
