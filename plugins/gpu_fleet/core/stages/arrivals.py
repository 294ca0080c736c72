"""A node's moments, read from what Kubernetes and EC2 keep about it.

Where each moment is from:

- *pending*: ``creationTimestamp`` of the oldest pod with GPUs on the node that is older than its NodeClaim. While a pod
  waits, its condition PodScheduled tells since when; binding it overwrites that (kubernetes v1.35
  ``pkg/registry/core/pod/storage/storage.go``, BindingREST).
- *claimed*: ``creationTimestamp`` of the NodeClaim.
- *launched*: EC2's ``LaunchTime``; where EC2 does not tell it, the NodeClaim's condition Launched.
- *registered*: the NodeClaim's condition Registered (kubernetes-sigs/karpenter v1.14.1
  ``pkg/controllers/nodeclaim/lifecycle/registration.go``).
- *ready*: the Node's condition Ready. It moves when a node is NotReady for a while, so one after *Initialized*, which
  needs Ready and is never taken back (``lifecycle/initialization.go``), is not the first.
- *plugin*: Kubernetes keeps no time stamp of allocatable resources. The scheduler binds a pod with GPUs, and Karpenter
  sets Initialized, as soon as they are there; whichever came first. (Initialized also waits for startup taints.)
- *used*: PodScheduled of the first user's pod with GPUs that still exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gpu_fleet.core.kubernetes.objects import (
    Object,
    PoolNode,
    condition,
    created_at,
    epoch,
    gpus_requested,
    is_ours,
    is_true,
    name_of,
    node_of,
    of_daemon_set,
)
from gpu_fleet.core.stages.moments import Moment, NodeTimes


def arrivals(
    nodes: Iterable[Object], claims: Iterable[Object], pods: Iterable[Object], launches: Mapping[str, float]
) -> list[NodeTimes]:
    """The moments of these nodes but the proof, which is no object's.

    :param claims: NodeClaims of any nodes.
    :param pods: pods of any nodes.
    :param launches: instance id -> EC2's ``LaunchTime`` in epoch seconds.
    """
    by_node = {str((claim.get("status") or {}).get("nodeName") or ""): claim for claim in claims}
    on_node: dict[str, list[Object]] = {}
    for pod in pods:
        if node_of(pod) and gpus_requested(pod):
            on_node.setdefault(node_of(pod), []).append(pod)
    return [_arrival(node, by_node.get(name_of(node)), on_node.get(name_of(node), []), launches) for node in nodes]


def _arrival(node: Object, claim: Object | None, pods: list[Object], launches: Mapping[str, float]) -> NodeTimes:
    view = PoolNode.of(node)
    claimed = created_at(claim) if claim is not None else None
    initialized = _became_true(claim, "Initialized")
    waiting = min(
        (pod for pod in pods if claimed is not None and (created_at(pod) or claimed + 1) <= claimed),
        key=lambda pod: (created_at(pod) or 0.0, name_of(pod)),
        default=None,
    )
    users = [pod for pod in pods if not is_ours(pod) and not of_daemon_set(pod)]
    ready = view.ready_since
    known = {
        Moment.PENDING: created_at(waiting) if waiting is not None else None,
        Moment.CLAIMED: claimed,
        Moment.LAUNCHED: launches.get(view.instance_id, _became_true(claim, "Launched")),
        Moment.REGISTERED: _became_true(claim, "Registered"),
        Moment.READY: None if ready is None or (initialized is not None and ready > initialized) else ready,
        Moment.PLUGIN: _first([initialized, *map(_scheduled, pods)]),
        Moment.USED: _first(map(_scheduled, users)),
    }
    return NodeTimes(
        key=str(((claim if claim is not None else node).get("metadata") or {}).get("uid") or view.name),
        node=view.name,
        claim=name_of(claim) if claim is not None else "",
        instance=view.instance_id,
        instance_type=view.instance_type,
        zone=view.zone,
        capacity_type=view.capacity_type,
        pod=_title(waiting) if waiting is not None else "",
        asked=waiting is not None and is_ours(waiting),
        created=claimed if claim is not None else view.created,
        at={moment: seconds for moment, seconds in known.items() if seconds is not None},
    )


def _became_true(item: Object | None, kind: str) -> float | None:
    if item is None or not is_true(item, kind):
        return None
    return epoch((condition(item, kind) or {}).get("lastTransitionTime"))


def _scheduled(pod: Object) -> float | None:
    return _became_true(pod, "PodScheduled")


def _first(moments: Iterable[float | None]) -> float | None:
    return min((moment for moment in moments if moment is not None), default=None)


def _title(pod: Object) -> str:
    return f"{(pod.get('metadata') or {}).get('namespace', '')}/{name_of(pod)}"
