"""Gates of the teardown: they wait for absence.

What belongs to a NodePool that stays is not waited for: it is another team's, or a pool with ``manage: false``.
Everything else counts. NodeClaims that a person created without any pool are removed only together with Karpenter;
where it stays (argument ``standalone_stays``), they are not waited for. In an emergency (argument ``removed``) only the
NodeClaims and nodes of the pools that the teardown removes itself count: without Karpenter the others are never
removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.kubernetes.conditions import explaining
from gpu_fleet.core.kubernetes.kinds import EC2_NODE_CLASS, NODE, NODE_CLAIM, NODE_POOL
from gpu_fleet.core.kubernetes.names import LABEL_CLUSTER, LABEL_NODE_POOL, TAG_NODE_CLAIM
from gpu_fleet.core.kubernetes.objects import conditions, deleting
from gpu_fleet.core.queries import KubeQuery, Query
from gpu_fleet.core.teardown.remains import (
    karpenter_instances,
    left_classes,
    left_in_pools,
    left_instances,
    living_pools,
    shorten,
    tags_of,
)
from gpu_fleet.core.teardown.scope import pool_of
from gpu_fleet.core.verdict import Verdict, failed, progressing, ready

#: Karpenter looks for instances without a NodeClaim every 2 minutes and leaves young ones alone
#: (aws/karpenter-provider-aws v1.14 pkg/controllers/nodeclaim/garbagecollection); after twice that time it will not
#: remove them.
ORPHAN_GRACE_S = 300.0


def _claim_text(claim: Mapping[str, Any]) -> str:
    """A NodeClaim's name and the first reason why it is still there."""
    name = claim["metadata"]["name"]
    if not deleting(claim):
        return f"{name} (not being deleted)"
    known = conditions(claim)
    for kind in ("Drained", "VolumesDetached", "InstanceTerminating"):
        condition = known.get(kind)
        if condition is not None and (condition.get("status") != "True" or kind == "InstanceTerminating"):
            detail = condition.get("message") or condition.get("reason") or condition.get("status")
            return f"{name} ({kind}: {detail})"
    return f"{name} (terminating)"


def _claims_queries(args: Args) -> tuple[Query, ...]:  # noqa: ARG001
    return (
        KubeQuery("claims", NODE_CLAIM),
        KubeQuery("nodes", NODE, label_selector=LABEL_NODE_POOL),
        KubeQuery("pools", NODE_POOL),
    )


def judge_claims_gone(snapshot: Snapshot, args: Args) -> Verdict:
    """Ready when no NodeClaim and no node is left, except those of NodePools that live on.

    :param args: ``removed``: result of the task that deleted the NodePools; its ``waitsFor`` names the pools that an
        emergency removes itself.
    """
    only = (args.get("removed") or {}).get("waitsFor")
    living = living_pools(snapshot["pools"], standalone=bool(args.get("standalone_stays")))

    def left(items: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return left_in_pools(items, living) if only is None else [item for item in items if pool_of(item) in only]

    claims = left(snapshot["claims"])
    if claims:
        return progressing(
            "NodeClaimsRemain", f"{len(claims)} NodeClaims remain: {shorten([_claim_text(claim) for claim in claims])}"
        )
    nodes = left(snapshot["nodes"])
    if nodes:
        return progressing(
            "NodesRemain", f"{len(nodes)} nodes remain: {shorten([str(node['metadata']['name']) for node in nodes])}"
        )
    return ready("NodeClaimsGone", "no NodeClaim and no node of a removed NodePool is left")


def _nodes_queries(args: Args) -> tuple[Query, ...]:  # noqa: ARG001
    return (KubeQuery("nodes", NODE, label_selector=LABEL_NODE_POOL), KubeQuery("pools", NODE_POOL))


def judge_nodes_gone(snapshot: Snapshot, args: Args) -> Verdict:  # noqa: ARG001
    """Ready when no node of a removed NodePool is left."""
    nodes = left_in_pools(snapshot["nodes"], living_pools(snapshot["pools"]))
    if nodes:
        return progressing(
            "NodesRemain", f"{len(nodes)} nodes remain: {shorten([str(node['metadata']['name']) for node in nodes])}"
        )
    return ready("NodesGone", "no node of a removed NodePool is left")


def _instances_queries(args: Args) -> tuple[Query, ...]:
    if args.get("only") is not None:
        return (karpenter_instances(str(args["cluster"])),)
    return (
        karpenter_instances(str(args["cluster"])),
        KubeQuery("pools", NODE_POOL),
        KubeQuery("claims", NODE_CLAIM),
    )


def judge_instances_gone(snapshot: Snapshot, args: Args) -> Verdict:
    """Ready when EC2 has no instance of the cluster's removed NodePools that costs money.

    Failed when an instance has no NodeClaim and Karpenter's garbage collection had its time: it will stay.

    :param args: ``only``: ids of the instances to wait for, whatever pools there are: those that an emergency has
        terminated itself.
    """
    if (only := args.get("only")) is not None:
        costly = left_instances(snapshot["instances"], frozenset())
        return _instances_verdict([i for i in costly if i["InstanceId"] in only], str(args["cluster"]))
    living = living_pools(snapshot["pools"], standalone=bool(args.get("standalone_stays")))
    left = left_instances(snapshot["instances"], living)
    claims = {claim["metadata"]["name"] for claim in snapshot["claims"]}
    orphans = [i for i in left if tags_of(i).get(TAG_NODE_CLAIM) not in claims and i["State"]["Name"] == "running"]
    waited = float(args.get("now", 0.0)) - float(args.get("started", args.get("now", 0.0)))
    if orphans and waited >= ORPHAN_GRACE_S:
        return failed(
            "InstancesOrphaned",
            f"{shorten([str(i['InstanceId']) for i in orphans])} have no NodeClaim, and Karpenter has not removed them "
            f"within {waited:.0f} s; terminate these instances, then clear the task",
        )
    return _instances_verdict(left, str(args["cluster"]))


def _instances_verdict(left: list[Mapping[str, Any]], cluster: str) -> Verdict:
    if left:
        names = [f"{i['InstanceId']} ({i.get('InstanceType', '?')}, {i['State']['Name']})" for i in left]
        return progressing("InstancesRemain", f"{len(left)} EC2 instances remain: {shorten(names)}")
    return ready(
        "InstancesGone", f"no Karpenter instance of cluster {cluster} that was to be terminated is left in EC2"
    )


def _classes_queries(args: Args) -> tuple[Query, ...]:
    return (KubeQuery("classes", EC2_NODE_CLASS, label_selector=f"{LABEL_CLUSTER}={args['spec']}"),)


def judge_classes_gone(snapshot: Snapshot, args: Args) -> Verdict:
    """Ready when none of the EC2NodeClasses that the teardown removes is left.

    :param args: ``spec``: name of the cluster spec; ``kept``: names of the pools with ``manage: false``.
    """
    left = left_classes(snapshot["classes"], str(args["spec"]), args.get("kept") or ())
    if left:
        texts = []
        for item in left:
            detail = explaining(item).get("message") or ""
            texts.append(
                f"{item['metadata']['name']} ({detail or 'Karpenter removes its launch templates and profiles'})"
                if deleting(item)
                else f"{item['metadata']['name']} (not being deleted)"
            )
        return progressing("NodeClassesRemain", f"EC2NodeClasses remain: {shorten(texts)}")
    return ready("NodeClassesGone", "no EC2NodeClass of ours is left")


NODE_CLAIMS_GONE = Gate("nodeclaims_gone", _claims_queries, judge_claims_gone, waits_for_absence=True)
NODES_GONE = Gate("nodes_gone", _nodes_queries, judge_nodes_gone, waits_for_absence=True)
# Karpenter is uninstalled next, and nothing else would terminate an instance that is left.
INSTANCES_GONE = Gate("instances_gone", _instances_queries, judge_instances_gone, waits_for_absence=True, confirm=True)
NODE_CLASS_GONE = Gate("node_class_gone", _classes_queries, judge_classes_gone, waits_for_absence=True)
