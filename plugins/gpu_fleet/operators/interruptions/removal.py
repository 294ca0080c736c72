"""Removes the nodes that a drain has emptied, each by whoever owns it."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from gpu_fleet.core.errors import Conflict, GpuFleetError, NotFound
from gpu_fleet.core.interruptions.ways import Owner
from gpu_fleet.core.kubernetes.kinds import NODE_CLAIM, ObjectRef
from gpu_fleet.core.kubernetes.objects import deleting
from gpu_fleet.operators.interruptions.claiming import AT_ONCE

if TYPE_CHECKING:
    from gpu_fleet.core.interruptions.nodes import OurNode
    from gpu_fleet.core.spec import ClusterSpec
    from gpu_fleet.hooks.kubernetes.hook import KubeClient


def remove_nodes(kube: KubeClient, spec: ClusterSpec, nodes: Iterable[OurNode]) -> dict[str, str]:
    """Delete the NodeClaims of Karpenter's nodes, and terminate the instances of node groups; safe to repeat.

    A node group launches another instance for one that is terminated this way (Amazon EC2 Auto Scaling API,
    ``TerminateInstanceInAutoScalingGroup`` without a decrement of the desired capacity).

    :returns: node -> what was done, in words, or why not. Nothing here fails the drain, as the instance ends anyway.
    """
    listed = list(nodes)
    if not listed:
        return {}

    def work(node: OurNode) -> tuple[str, str]:
        try:
            return node.name, remove_node(kube, spec, node)
        except GpuFleetError as error:
            return node.name, f"could not be removed: {error.message}"

    with ThreadPoolExecutor(min(AT_ONCE, len(listed)), thread_name_prefix="gpu-fleet-removal") as pool:
        return dict(pool.map(work, listed))


def remove_node(kube: KubeClient, spec: ClusterSpec, node: OurNode) -> str:
    """Delete the node's NodeClaim, or terminate its instance; safe to repeat.

    :returns: what was done, in words.
    """
    if node.owner is Owner.NODE_GROUP:
        return _terminate(spec, node)
    if not node.claim:
        return "it has no NodeClaim"
    ref = ObjectRef(NODE_CLAIM, node.claim)
    claim = kube.get(ref)
    if claim is None:
        return f"NodeClaim {node.claim} is gone"
    if deleting(claim):
        return f"NodeClaim {node.claim} was being deleted already"
    try:
        kube.delete(ref, uid=claim["metadata"]["uid"])
    except (NotFound, Conflict):
        return f"NodeClaim {node.claim} is gone"
    return f"NodeClaim {node.claim} deleted"


def _terminate(spec: ClusterSpec, node: OurNode) -> str:
    from gpu_fleet.hooks.aws import aws_session

    session = aws_session(spec.aws.connection, spec.aws.region)
    session.call(
        "autoscaling",
        "terminate_instance_in_auto_scaling_group",
        InstanceId=node.instance,
        ShouldDecrementDesiredCapacity=False,
    )
    return f"instance {node.instance} terminated; its node group replaces it"
