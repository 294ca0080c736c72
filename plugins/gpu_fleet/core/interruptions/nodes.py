"""Whose an interrupted node is: a pool's, a managed node group's that the spec names, or none of ours. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.interruptions.ways import Owner
from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_CORDONED_BY,
    ANNOTATION_TERMINATION_TIME,
    CORDONED_FOR,
    GPU_RESOURCE,
    LABEL_CAPACITY_TYPE,
    LABEL_INSTANCE_TYPE,
    LABEL_NODE_GROUP,
    LABEL_NODE_POOL,
    LABEL_RESERVATION_ID,
    LABEL_ZONE,
    TAINT_DISRUPTED,
)
from gpu_fleet.core.kubernetes.objects import annotations_of, deleting, epoch, labels_of, name_of, quantity
from gpu_fleet.core.teardown.gpu_types import node_has_gpus

#: On the nodes of managed node groups (Amazon EKS User Guide, "Managed node groups concepts").
LABEL_NODE_GROUP_CAPACITY = "eks.amazonaws.com/capacityType"


@dataclass(frozen=True)
class OurNode:
    """A node that the package answers for.

    :ivar uid: of the Node: EC2 gives a later instance the same name.
    :ivar instance: EC2 instance id.
    :ivar pool: name of the pool, or of the node group.
    :ivar claim: name of its NodeClaim; empty if it has none.
    :ivar leaving: Karpenter, or somebody else, removes it already.
    :ivar deleted: its Node or NodeClaim is; a node that Karpenter has only tainted may yet stay.
    :ivar forced: Karpenter removes it without regard to its pods, see :func:`removed_by_force`.
    :ivar drained_by: the run of this package that has cordoned it for its drain; empty if none has.
    :ivar gpus: allocatable GPUs, or shares of one.
    :ivar spot: ``None`` if its labels do not say.
    :ivar reservation: id of the capacity reservation that it was launched into; empty for none.
    :ivar created: when it joined, epoch seconds; ``None`` if that is unknown.
    """

    name: str
    uid: str
    instance: str
    owner: Owner
    pool: str
    claim: str = ""
    leaving: bool = False
    deleted: bool = False
    forced: bool = False
    drained_by: str = ""
    gpus: int = 0
    instance_type: str = ""
    zone: str = ""
    spot: bool | None = None
    reservation: str = ""
    created: float | None = None

    @property
    def capacity_type(self) -> str:
        return "spot" if self.spot else "on-demand"

    def to_json(self) -> dict[str, Any]:
        return {
            "node": self.name,
            "uid": self.uid,
            "instance": self.instance,
            "owner": self.owner.value,
            "pool": self.pool,
            "claim": self.claim,
            "leaving": self.leaving,
            "gpus": self.gpus,
            "instanceType": self.instance_type,
            "zone": self.zone,
            "spot": self.spot,
            "reservation": self.reservation,
            "created": self.created,
        }


def instance_of(node: Mapping[str, Any]) -> str:
    """The EC2 instance id of a Node or NodeClaim: the last part of its provider id ``aws:///us-west-2a/i-0…``."""
    given = (node.get("spec") or {}).get("providerID") or (node.get("status") or {}).get("providerID") or ""
    return str(given).rpartition("/")[2]


def owner_of(node: Mapping[str, Any], pools: Collection[str], groups: Collection[str]) -> tuple[Owner, str] | None:
    """Who launched the node, and the name of its pool or node group; ``None`` for nodes of other teams.

    A GPU node of a node group counts as one also while its device plugin is down.

    :param pools: names of the spec's pools.
    :param groups: ``interruptions.nodeGroups``.
    """
    labels = labels_of(node)
    pool, group = labels.get(LABEL_NODE_POOL, ""), labels.get(LABEL_NODE_GROUP, "")
    if pool:
        return (Owner.KARPENTER, pool) if pool in pools else None
    if group and group in groups and (_gpus(node) or node_has_gpus(dict(node))):
        return Owner.NODE_GROUP, group
    return None


def our_node(
    node: Mapping[str, Any], claims: Mapping[str, Mapping[str, Any]], pools: Collection[str], groups: Collection[str]
) -> OurNode | None:
    """The node, if the package answers for it; ``None`` for nodes of other teams.

    :param claims: NodeClaims by the name of their node.
    :param pools: names of the spec's pools.
    :param groups: ``interruptions.nodeGroups``.
    """
    found = owner_of(node, pools, groups)
    if found is None:
        return None
    labels, name = labels_of(node), name_of(node)
    owner, of = found
    capacity = labels.get(LABEL_CAPACITY_TYPE if owner is Owner.KARPENTER else LABEL_NODE_GROUP_CAPACITY, "").lower()
    claim = claims.get(name)
    taints = (node.get("spec") or {}).get("taints") or []
    deleted = deleting(node) or (claim is not None and deleting(claim))
    return OurNode(
        name=name,
        uid=str((node.get("metadata") or {}).get("uid", "")),
        instance=instance_of(node),
        owner=owner,
        pool=of,
        claim=name_of(claim) if claim is not None else "",
        leaving=deleted or any(taint.get("key") == TAINT_DISRUPTED for taint in taints),
        deleted=deleted,
        forced=claim is not None and removed_by_force(claim),
        drained_by=cordoning_run(node),
        gpus=_gpus(node),
        instance_type=labels.get(LABEL_INSTANCE_TYPE, ""),
        zone=labels.get(LABEL_ZONE, ""),
        spot=capacity == "spot" if capacity else None,
        reservation=labels.get(LABEL_RESERVATION_ID, ""),
        created=epoch((node.get("metadata") or {}).get("creationTimestamp")),
    )


def removed_by_force(claim: Mapping[str, Any]) -> bool:
    """Whether Karpenter deleted the NodeClaim with no time left for its pods: EC2's status checks had failed for two
    minutes (aws/karpenter-provider-aws v1.14.1 ``pkg/controllers/interruption/utils.go``, annotateTerminationTimestamp)
    or its node repair did (kubernetes-sigs/karpenter v1.14.1 ``pkg/controllers/node/health/controller.go``).

    A ``terminationGracePeriod`` writes the same annotation, with a time that is so much later than the deletion.
    """
    period = str((claim.get("spec") or {}).get("terminationGracePeriod") or "")
    if period and not any(digit in period for digit in "123456789"):
        return False
    deleted = epoch((claim.get("metadata") or {}).get("deletionTimestamp"))
    ends = epoch(annotations_of(claim).get(ANNOTATION_TERMINATION_TIME))
    return deleted is not None and ends is not None and ends <= deleted


def cordoning_run(node: Mapping[str, Any]) -> str:
    """The run whose drain has cordoned the node; empty if it is not cordoned, or for another reason."""
    by = annotations_of(node).get(ANNOTATION_CORDONED_BY, "")
    cordoned = bool((node.get("spec") or {}).get("unschedulable"))
    return by if cordoned and not by.startswith(CORDONED_FOR) else ""


def _gpus(node: Mapping[str, Any]) -> int:
    return quantity(((node.get("status") or {}).get("allocatable") or {}).get(GPU_RESOURCE)) or 0
