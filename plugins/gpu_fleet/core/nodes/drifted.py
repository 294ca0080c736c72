"""Nodes that differ from what would be launched today: since when, in which fields, and whose pods hold GPUs. Pure.

By default nothing replaces them (see ``disruption.budgets``), so preflight, the drift check, reports and asset events
name them. A drifted node has no defect: jobs continue to run there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gpu_fleet.core.kubernetes.do_not_disrupt import protected_value
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.kubernetes.objects import (
    Object,
    annotations_of,
    condition,
    deleting,
    epoch,
    finished,
    gpus_requested,
    is_ours,
    labels_of,
    name_of,
    node_of,
)
from gpu_fleet.core.nodes.records import Record
from gpu_fleet.core.nodes.template import (
    AMI,
    AMI_ALIAS,
    CLASS_HASH,
    CLASS_HASH_VERSION,
    EXPIRE_AFTER,
    GRACE_PERIOD,
    LABELS,
    NODE_CLASS,
    POOL_HASH,
    POOL_HASH_VERSION,
    SHARING,
    STARTUP_TAINTS,
    TAINTS,
    TEMPLATE,
    Change,
    alias_of,
    claim_fields,
    class_fields,
    differences,
    hashes_differ,
    images_of,
    pool_fields,
    unmet_requirements,
)
from gpu_fleet.core.spec.types.durations import Duration

#: Fields that matter to jobs and to the device plugin. A node that differs in one of them offers something else than
#: the spec describes; one that differs only in other fields (AMI, tags, lifetime) is as good as before.
OFFERED = frozenset({SHARING, TAINTS, STARTUP_TAINTS})
#: Maximum number of pods, and of fields, that one sentence names.
NAMED = 5


@dataclass(frozen=True)
class DriftedNode:
    """
    :ivar node: empty for a NodeClaim without a node.
    :ivar since: RFC 3339, from Karpenter's condition; empty before Karpenter has looked.
    :ivar reason: Karpenter's, for example ``NodePoolDrifted``; empty before Karpenter has looked.
    :ivar pods: ``namespace/name`` of users' pods that hold GPUs there.
    :ivar protected: users' pods on the node that ask not to be disrupted.
    :ivar period: the terminationGracePeriod that its NodeClaim was created with; empty for none.
    :ivar expires_at: RFC 3339 at which Karpenter removes the node for its age; empty for never.
    """

    node: str
    claim: str
    pool: str
    since: str = ""
    reason: str = ""
    changes: tuple[Change, ...] = ()
    pods: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()
    period: str = ""
    expires_at: str = ""

    @property
    def idle(self) -> bool:
        """Whether no user's pod holds a GPU there or asks not to be disrupted."""
        return not self.pods and not self.protected

    @property
    def offers_another(self) -> bool:
        """Whether jobs would get another kind of node today: other taints, labels or sharing."""
        return any(each.field in OFFERED or each.field.startswith(LABELS) for each in self.changes)

    def to_json(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "nodeClaim": self.claim,
            "pool": self.pool,
            "since": self.since,
            "reason": self.reason,
            "changes": [change.to_json() for change in self.changes],
            "pods": list(self.pods),
            "protected": list(self.protected),
            "terminationGracePeriod": self.period,
            "expiresAt": self.expires_at,
            "message": str(self),
        }

    @property
    def because(self) -> str:
        if self.changes:
            shown = "; ".join(str(change) for change in self.changes[:NAMED])
            return shown + ("; …" if len(self.changes) > NAMED else "")
        return self.reason or "its hash differs"

    def __str__(self) -> str:
        what = f"node {self.node}" if self.node else f"NodeClaim {self.claim}"
        since = f"since {self.since}, " if self.since else ""
        return (
            f"{what} of pool {self.pool} has been drifted {since}because {self.because}; "
            f"{holds(self.pods)}{self._deadline()}"
        )

    def _deadline(self) -> str:
        """What Karpenter will do at its age; a NodeClaim cannot be changed, so a new spec does not prevent it."""
        if not self.expires_at:
            return ""
        then = f"deletes every pod {self.period} later, protected or not" if self.period else "waits for protected pods"
        return f". At {self.expires_at} it reaches the age that it was made with: Karpenter evicts its pods and {then}"


def brief(node: Mapping[str, Any]) -> dict[str, Any]:
    """The part of :meth:`DriftedNode.to_json` that fits into an asset event."""
    fields = [str(change.get("field", "")) for change in node.get("changes") or ()]
    return {
        **{key: str(node.get(key, "")) for key in ("node", "since", "reason")},
        "fields": fields[:NAMED],
        "gpuPods": len(node.get("pods") or ()),
    }


def holds(pods: Sequence[str]) -> str:
    """``holds no GPU pods``, ``holds 2 GPU pods (a/b, c/d)``."""
    if not pods:
        return "holds no GPU pods"
    more = f" and {len(pods) - NAMED} more" if len(pods) > NAMED else ""
    return f"holds {len(pods)} GPU pod{'s' if len(pods) > 1 else ''} ({', '.join(pods[:NAMED])}{more})"


# --- what is drifted -------------------------------------------------------------------------------------------------


def drifted_nodes(
    claims: Iterable[Object],
    pods: Iterable[Object],
    pools: Mapping[str, Object],
    classes: Mapping[str, Object],
    records: Mapping[str, Record],
) -> list[DriftedNode]:
    """The drifted nodes of these pools, by pool and name.

    A NodeClaim counts as drifted as soon as Karpenter says so, or its hash differs from that of its NodePool or
    EC2NodeClass.

    :param pools: name -> live NodePool.
    :param classes: name -> live EC2NodeClass.
    :param records: pool -> what is recorded of its EC2NodeClass.
    """
    pods, found = list(pods), []
    for claim in claims:
        pool = pools.get(labels_of(claim).get(LABEL_NODE_POOL, ""))
        if pool is None or deleting(claim):
            continue
        node_class = classes.get(class_name(claim))
        marked = condition(claim, "Drifted") or {}
        if marked.get("status") != "True" and not _hash_differs(claim, pool, node_class):
            continue
        reason = str(marked.get("reason") or "") if marked.get("status") == "True" else ""
        changes = made_differently(claim, pool, node_class, records.get(name_of(pool), Record()), reason=reason)
        since = str(marked.get("lastTransitionTime") or "") if reason else ""
        found.append(describe(claim, pods, since=since, reason=reason, changes=changes))
    return sorted(found, key=lambda each: (each.pool, each.node, each.claim))


def class_name(claim: Object) -> str:
    return str(((claim.get("spec") or {}).get("nodeClassRef") or {}).get("name") or "")


def _hash_differs(claim: Object, pool: Object, node_class: Object | None) -> bool:
    return hashes_differ(claim, pool, POOL_HASH, POOL_HASH_VERSION) or (
        node_class is not None and hashes_differ(claim, node_class, CLASS_HASH, CLASS_HASH_VERSION)
    )


def made_differently(
    claim: Object, pool: Object, node_class: Object | None, record: Record, *, reason: str = ""
) -> tuple[Change, ...]:
    """The fields in which a node of that pool and class would differ if it were launched now.

    :param reason: Karpenter's. If it names the NodePool or the EC2NodeClass and no field of that differs, the change is
        reported without a field.
    """
    changes = differences(claim_fields(claim, pool), pool_fields(pool)) + unmet_requirements(claim, pool)
    if reason == "NodePoolDrifted" and not changes:
        changes.append(Change(TEMPLATE))
    if node_class is None:
        return tuple(changes)
    known = record.classes.get(annotations_of(claim).get(CLASS_HASH, ""))
    of_class = [] if known is None else differences(known, class_fields(node_class))
    if not of_class and (
        reason == "NodeClassDrift" or hashes_differ(claim, node_class, CLASS_HASH, CLASS_HASH_VERSION)
    ):
        of_class = [Change(NODE_CLASS)]
    image = image_change(claim, node_class, record, certain=reason == "AMIDrift")
    return (*changes, *of_class, *([image] if image else []))


def image_change(claim: Object, node_class: Object, record: Record, *, certain: bool = False) -> Change | None:
    """Whether a node would get another AMI: by its alias if that is known, else by the AMIs that the class has found.

    :param certain: Karpenter has found another AMI. It compares the AMI of the node's instance type, and only that one
        may have changed.
    """
    image, now = str((claim.get("status") or {}).get("imageID") or ""), alias_of(node_class)
    images = images_of(node_class)
    was = record.images.get(image, "")
    if was and now and was != now:
        return Change(AMI_ALIAS, was, now)
    if not certain and (not image or not images or image in images):
        return None
    return Change(AMI, image, ", ".join(f"{key} {name}".strip() for key, name in list(images.items())[:NAMED]))


# --- its pods --------------------------------------------------------------------------------------------------------


def describe(
    claim: Object,
    pods: Iterable[Object],
    *,
    since: str = "",
    reason: str = "",
    changes: Iterable[Change] = (),
) -> DriftedNode:
    node, spec = str((claim.get("status") or {}).get("nodeName") or ""), claim.get("spec") or {}
    users = [pod for pod in pods if node and node_on(pod) == node and not finished(pod) and not is_ours(pod)]
    return DriftedNode(
        node=node,
        claim=name_of(claim),
        pool=labels_of(claim).get(LABEL_NODE_POOL, ""),
        since=since,
        reason=reason,
        changes=tuple(changes),
        pods=_names(pod for pod in users if gpus_requested(pod)),
        protected=_names(pod for pod in users if protected_value(pod) is not None),
        period=str(spec.get(GRACE_PERIOD) or ""),
        expires_at=_expiry(claim),
    )


def node_on(pod: Object) -> str:
    """The node of a pod, or the one that it is nominated to while the pods that it preempts are still there."""
    return node_of(pod) or str((pod.get("status") or {}).get("nominatedNodeName") or "")


def _names(pods: Iterable[Object]) -> tuple[str, ...]:
    return tuple(sorted(f"{(pod.get('metadata') or {}).get('namespace')}/{name_of(pod)}" for pod in pods))


def _expiry(claim: Object) -> str:
    """When a NodeClaim expires (kubernetes-sigs/karpenter v1.14.1 ``pkg/controllers/nodeclaim/expiration``)."""
    text = str((claim.get("spec") or {}).get(EXPIRE_AFTER) or "Never")
    made = epoch((claim.get("metadata") or {}).get("creationTimestamp"))
    if text == "Never" or made is None:
        return ""
    try:
        age = Duration.parse(text).seconds
    except ValueError:
        return ""
    return datetime.fromtimestamp(made + age, UTC).isoformat(timespec="seconds")
