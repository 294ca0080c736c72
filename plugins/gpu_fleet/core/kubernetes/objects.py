"""Nodes, NodeClaims and pods as capacity and validation read them: total functions over plain JSON objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_QUARANTINED,
    COMPONENT_BURST,
    COMPONENT_HEADROOM,
    COMPONENT_HOLD,
    COMPONENT_PLACEHOLDER,
    COMPONENT_PROBE,
    GPU_RESOURCE,
    LABEL_CAPACITY_TYPE,
    LABEL_COMPONENT,
    LABEL_INITIALIZED,
    LABEL_INSTANCE_TYPE,
    LABEL_NODE_POOL,
    LABEL_PLUGIN_CONFIG,
    LABEL_ZONE,
    TAINT_DISRUPTED,
    TAINT_UNPROVEN,
    TAINT_UNREGISTERED,
)

Object = Mapping[str, Any]

_OURS = (COMPONENT_PROBE, COMPONENT_PLACEHOLDER, COMPONENT_HOLD, COMPONENT_BURST, COMPONENT_HEADROOM)

#: The node condition of the EKS node monitoring agent for GPUs (aws/eks-node-monitoring-agent
#: docs/node-health-issues.adoc).
HARDWARE_CONDITION = "AcceleratedHardwareReady"

_FINISHED = frozenset({"Succeeded", "Failed"})


def epoch(timestamp: Any) -> float | None:
    """Epoch seconds of an RFC 3339 timestamp, or ``None`` if there is none that can be read."""
    if not isinstance(timestamp, str) or not timestamp:
        return None
    try:
        value = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return value.timestamp() if value.tzinfo else None


def quantity(value: Any) -> int | None:
    """A whole-number quantity (extended resources have no others), or ``None`` if absent or unreadable."""
    if isinstance(value, bool):
        return None
    try:
        return int(str(value))
    except ValueError:
        return None


def name_of(item: Object) -> str:
    return str((item.get("metadata") or {}).get("name", ""))


def labels_of(item: Object) -> dict[str, str]:
    return dict((item.get("metadata") or {}).get("labels") or {})


def annotations_of(item: Object) -> dict[str, str]:
    return dict((item.get("metadata") or {}).get("annotations") or {})


def title_of(item: Object) -> str:
    """``Kind namespace/name``, for messages."""
    metadata = item.get("metadata") or {}
    where = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{item.get('kind', 'object')} {where}{metadata.get('name', '?')}"


def created_at(item: Object) -> float | None:
    """Epoch seconds of ``creationTimestamp``."""
    return epoch((item.get("metadata") or {}).get("creationTimestamp"))


def deleting(item: Object) -> bool:
    """Whether the object's deletion was requested; finalizers or a grace period may still keep it."""
    return bool((item.get("metadata") or {}).get("deletionTimestamp"))


def conditions(item: Object) -> dict[str, Object]:
    """Condition type -> condition."""
    listed = (item.get("status") or {}).get("conditions") or []
    return {str(entry.get("type")): entry for entry in listed if isinstance(entry, Mapping)}


def condition(item: Object, kind: str) -> dict[str, Any] | None:
    """The condition of that type, or ``None``."""
    found = conditions(item).get(kind)
    return None if found is None else dict(found)


def is_true(item: Object, kind: str) -> bool:
    """Whether the condition of that type is True."""
    return conditions(item).get(kind, {}).get("status") == "True"


def _not_ready(node: Object, state: Mapping[str, Any]) -> str:
    """Why a node is not Ready: Ready's own words, and every condition beside it that is not as it should be.

    Pressures and ``NetworkUnavailable`` should be False (kubernetes 'Node Status'), the EKS node monitoring agent's
    ``…Ready`` conditions True.
    """
    words = [f"{state.get('reason', 'NoCondition')} {state.get('message', '')}".strip()]
    for kind, entry in conditions(node).items():
        if kind != "Ready" and entry.get("status") == ("False" if kind.endswith("Ready") else "True"):
            words.append(f"{kind}={entry.get('status')} {entry.get('reason', '')} {entry.get('message', '')}".strip())
    return "; ".join(words)


@dataclass(frozen=True)
class PoolNode:
    """A node of a NodePool.

    :ivar gpus: allocatable ``nvidia.com/gpu``; ``None`` if the node does not have the resource at all.
    :ivar capacity: ``nvidia.com/gpu`` in the capacity, which counts unhealthy devices too.
    :ivar entry: the device plugin's config entry that the node carries, empty without one.
    :ivar hardware: status, reason and message of :data:`HARDWARE_CONDITION`; ``None`` without the agent.
    :ivar ready_since: epoch seconds at which Ready became True.
    :ivar created: epoch seconds at which the Node object was created.
    :ivar not_ready: reason and message while it is not Ready.
    :ivar not_ready_since: epoch seconds since which it is not Ready.
    :ivar quarantined: this package took it out of service because it failed a validation.
    :ivar unproven: it still has the startup taint of gated pools. Karpenter does not initialize it until that is gone
        (kubernetes-sigs/karpenter v1.14.1 ``pkg/controllers/nodeclaim/lifecycle/initialization.go``).
    """

    name: str
    ready: bool
    ready_since: float | None
    not_ready: str
    gpus: int | None
    initialized: bool
    cordoned: bool
    leaving: bool
    unregistered: bool
    instance_id: str
    instance_type: str
    zone: str
    capacity_type: str
    annotations: Mapping[str, str] = field(default_factory=dict)
    created: float | None = None
    quarantined: bool = False
    capacity: int | None = None
    hardware: tuple[str, str, str] | None = None
    not_ready_since: float | None = None
    entry: str = ""
    unproven: bool = False

    @property
    def usable(self) -> bool:
        """Whether nothing but our own taint keeps pods away that ask for its GPUs: Karpenter has initialized it, or
        waits for the proof that removes our startup taint."""
        return self.initialized or (self.unproven and self.ready and bool(self.gpus))

    @classmethod
    def of(cls, node: Object) -> PoolNode:
        labels, spec, status = labels_of(node), node.get("spec") or {}, node.get("status") or {}
        taints = {taint.get("key") for taint in spec.get("taints") or []}
        state = condition(node, "Ready") or {}
        is_ready = state.get("status") == "True"
        hardware = condition(node, HARDWARE_CONDITION)
        return cls(
            name=name_of(node),
            ready=is_ready,
            ready_since=epoch(state.get("lastTransitionTime")) if is_ready else None,
            not_ready="" if is_ready else _not_ready(node, state),
            gpus=quantity((status.get("allocatable") or {}).get(GPU_RESOURCE)),
            initialized=labels.get(LABEL_INITIALIZED) == "true",
            cordoned=bool(spec.get("unschedulable")),
            # A node that Karpenter is about to remove stays Ready, and so does its claim: only these two show it.
            leaving=deleting(node) or TAINT_DISRUPTED in taints,
            unregistered=TAINT_UNREGISTERED in taints,
            instance_id=str(spec.get("providerID", "")).rpartition("/")[2],
            instance_type=labels.get(LABEL_INSTANCE_TYPE, ""),
            zone=labels.get(LABEL_ZONE, ""),
            capacity_type=labels.get(LABEL_CAPACITY_TYPE, ""),
            annotations=annotations_of(node),
            created=created_at(node),
            quarantined=ANNOTATION_QUARANTINED in annotations_of(node),
            capacity=quantity((status.get("capacity") or {}).get(GPU_RESOURCE)),
            hardware=None
            if hardware is None
            else (str(hardware.get("status")), str(hardware.get("reason", "")), str(hardware.get("message", ""))),
            entry=labels.get(LABEL_PLUGIN_CONFIG, ""),
            unproven=TAINT_UNPROVEN in taints,
            not_ready_since=None if is_ready else epoch(state.get("lastTransitionTime")),
        )

    def instance(self) -> dict[str, str]:
        """What identifies the machine, for XComs and reports."""
        return {
            "id": self.instance_id,
            "type": self.instance_type,
            "zone": self.zone,
            "capacityType": self.capacity_type,
        }


@dataclass(frozen=True)
class PoolClaim:
    """A NodeClaim of a NodePool.

    :ivar node: name of its node, empty until it registers.
    :ivar waiting: the first of Launched, Registered, Initialized that is not True, as (type, reason, message).
    :ivar waiting_since: epoch seconds of that condition's last transition.
    """

    name: str
    node: str
    leaving: bool
    waiting: tuple[str, str, str] | None
    waiting_since: float | None

    @classmethod
    def of(cls, claim: Object) -> PoolClaim:
        waiting, since = None, None
        for kind in ("Launched", "Registered", "Initialized"):
            entry = condition(claim, kind)
            if entry is None or entry.get("status") != "True":
                entry = entry or {}
                waiting = (kind, str(entry.get("reason", "AwaitingReconciliation")), str(entry.get("message", "")))
                since = epoch(entry.get("lastTransitionTime"))
                break
        return cls(
            name=name_of(claim),
            node=str((claim.get("status") or {}).get("nodeName") or ""),
            leaving=deleting(claim),
            waiting=waiting,
            waiting_since=since,
        )


def pool_nodes(nodes: Iterable[Object], pool: str) -> list[PoolNode]:
    """The pool's nodes that are there to stay, by name."""
    views = [PoolNode.of(node) for node in nodes if labels_of(node).get(LABEL_NODE_POOL) == pool]
    return sorted((node for node in views if not node.leaving), key=lambda node: node.name)


def pool_claims(claims: Iterable[Object], pool: str) -> list[PoolClaim]:
    """The pool's NodeClaims that are there to stay, by name."""
    views = [PoolClaim.of(claim) for claim in claims if labels_of(claim).get(LABEL_NODE_POOL) == pool]
    return sorted((claim for claim in views if not claim.leaving), key=lambda claim: claim.name)


def finished(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in _FINISHED


def node_of(pod: Object) -> str:
    return str((pod.get("spec") or {}).get("nodeName") or "")


def gpus_requested(pod: Object) -> int:
    """GPUs that a pod holds while it runs: the sum over its containers, or a larger init container.

    Source: Kubernetes 'Init Containers', resource sharing within containers.
    """

    def of(container: Mapping[str, Any]) -> int:
        resources = container.get("resources") or {}
        value = (resources.get("requests") or {}).get(GPU_RESOURCE, (resources.get("limits") or {}).get(GPU_RESOURCE))
        return quantity(value) or 0

    spec = pod.get("spec") or {}
    running = sum(of(container) for container in spec.get("containers") or [])
    return max([running, *(of(container) for container in spec.get("initContainers") or [])])


def gpus_held(pods: Iterable[Object]) -> dict[str, int]:
    """Node name -> GPUs held there by pods that are not finished."""
    held: dict[str, int] = {}
    for pod in pods:
        if node_of(pod) and not finished(pod):
            held[node_of(pod)] = held.get(node_of(pod), 0) + gpus_requested(pod)
    return held


def event_time(event: Object) -> float:
    """Epoch seconds of an event's last occurrence; 0 if it carries no time."""
    series = event.get("series") or {}
    for value in (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event.get("firstTimestamp"),
        (event.get("metadata") or {}).get("creationTimestamp"),
    ):
        seconds = epoch(value)
        if seconds is not None:
            return seconds
    return 0.0


def newest(events: Iterable[Object], reason: str, uids: Iterable[str] | None = None) -> dict[str, Any] | None:
    """The newest event with that reason, about one of those objects if ``uids`` is given."""
    wanted = None if uids is None else set(uids)
    matching: list[dict[str, Any]] = [
        dict(event)
        for event in events
        if event.get("reason") == reason
        and (wanted is None or (event.get("involvedObject") or {}).get("uid") in wanted)
    ]
    return max(matching, key=event_time) if matching else None


def is_ours(pod: Object) -> bool:
    """Whether a pod is this package's own: a probe, a placeholder, a hold, headroom, or one of a burst."""
    return labels_of(pod).get(LABEL_COMPONENT) in _OURS


def of_daemon_set(pod: Object) -> bool:
    """Whether a DaemonSet has created a pod: it lives and ends with its node."""
    owners = (pod.get("metadata") or {}).get("ownerReferences") or []
    return any(owner.get("kind") == "DaemonSet" for owner in owners)
