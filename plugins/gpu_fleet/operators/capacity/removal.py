"""Removing an idle node so that no user's pod is scheduled to it meanwhile: cordon, look again, then delete.

The scheduler works on a watched copy of the nodes, so a look before the cordon says nothing about the moment after it.
Source: kubernetes ``pkg/scheduler/backend/cache`` and ``pkg/scheduler/framework/plugins/nodeunschedulable`` (v1.35).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import Conflict, NotFound
from gpu_fleet.core.kubernetes.kinds import NODE, ObjectRef
from gpu_fleet.core.nodes import replacement as rules
from gpu_fleet.core.nodes.drifted import describe
from gpu_fleet.core.nodes.replacement import Left, Why

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import KubeClient

#: Seconds between cordoning a node and looking at it for the last time. A pod that the scheduler had placed before it
#: saw the cordon is bound within this time: it works on a watched copy of the nodes and binds right after its decision.
SCHEDULER_LAG_S = 2.0


def cordon(kube: KubeClient, name: str, run: str) -> Left | None:
    """Cordon a node in a run's name; a cordon that an earlier try of the run has made counts.

    :returns: why the node stays as it is; ``None`` if it is cordoned now.
    """
    ref = ObjectRef(NODE, name)
    node = kube.get(ref)
    if node is None:
        return Left(name, Why.GONE, "the node no longer exists")
    if rules.cordoned_by(node, run):
        return None
    body = rules.cordon(node, run)
    if body is None:
        return Left(name, Why.OUT_OF_SERVICE, "cordoned meanwhile, by a person or another controller")
    try:
        kube.patch(ref, body)
    except NotFound:
        return Left(name, Why.GONE, "the node was deleted just now")
    except Conflict:
        return Left(name, Why.OUT_OF_SERVICE, "the node was changed just now; the next run tries again")
    return None


def uncordon(kube: KubeClient, name: str, run: str) -> None:
    """Take back the run's own cordon and no other; a no-op if the node no longer exists."""
    node = kube.get(ObjectRef(NODE, name))
    if node is None or not rules.cordoned_by(node, run):
        return
    try:
        kube.patch(ObjectRef(NODE, name), rules.uncordon())
    except NotFound:
        return


def await_scheduler() -> None:
    """Wait until the scheduler has seen a cordon, and has bound the pods that it had placed before."""
    time.sleep(SCHEDULER_LAG_S)


def live_pods(kube: KubeClient, claims: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The unfinished pods on these NodeClaims' nodes, with those for which the scheduler preempts pods there."""
    from gpu_fleet.hooks.cluster.pods import pods_on

    found = pods_on(kube, (str((claim.get("status") or {}).get("nodeName") or "") for claim in claims))
    return [pod for pod in found if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]


def users(kube: KubeClient, claim: Mapping[str, Any]) -> str:
    """Which pods use a NodeClaim's node now, in words; empty if none does."""
    found = describe(claim, live_pods(kube, [claim]))
    return "" if found.idle else rules.in_use(found)
