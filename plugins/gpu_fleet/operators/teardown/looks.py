"""What a teardown reads: the objects of the cluster and of the AWS account, as they are now."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import Forbidden, NotFound, PermanentError
from gpu_fleet.core.kubernetes.kinds import (
    CRON_JOB,
    DAEMON_SET,
    DEPLOYMENT,
    EC2_NODE_CLASS,
    JOB,
    NODE,
    NODE_CLAIM,
    NODE_OVERLAY,
    NODE_POOL,
    PERSISTENT_VOLUME,
    POD,
    POD_DISRUPTION_BUDGET,
    REPLICA_SET,
    SECRET,
    STATEFUL_SET,
)
from gpu_fleet.core.kubernetes.names import KARPENTER_SELECTOR, RUNTIME_CLASS_NAME
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown.remains import karpenter_instances
from gpu_fleet.core.teardown.scope import Observed, needs_karpenter, orphans_go, pool_of

if TYPE_CHECKING:
    from gpu_fleet.core.teardown.keeps import Keeps
    from gpu_fleet.hooks.kubernetes.hook import KubeClient

log = logging.getLogger(__name__)

#: ``DescribeVolumes`` takes at most 200 values in a filter (EC2 API reference).
_MOST_VALUES = 200


def instances_of(spec: ClusterSpec) -> list[dict[str, Any]]:
    """The cluster's Karpenter-launched EC2 instances in a state that costs money."""
    from gpu_fleet.hooks.aws import aws_session

    query = karpenter_instances(spec.cluster.name)
    session = aws_session(spec.aws.connection, spec.aws.region)
    return session.paginate(query.service, query.operation, query.path, **query.params)


def volumes_of_instances(spec: ClusterSpec, ids: list[str]) -> list[dict[str, Any]]:
    """The EBS volumes that are attached to instances."""
    from gpu_fleet.hooks.aws import aws_session

    session, found = aws_session(spec.aws.connection, spec.aws.region), []
    for start in range(0, len(ids), _MOST_VALUES):
        of = {"Name": "attachment.instance-id", "Values": ids[start : start + _MOST_VALUES]}
        found += session.paginate("ec2", "describe_volumes", "Volumes", Filters=[of])
    return found


def node_groups_of(spec: ClusterSpec) -> list[dict[str, Any]] | None:
    """The cluster's EKS managed node groups; ``None`` without the permission to list them."""
    from gpu_fleet.hooks.aws import aws_session

    session, cluster = aws_session(spec.aws.connection, spec.aws.region), spec.cluster.name
    try:
        names = session.paginate("eks", "list_nodegroups", "nodegroups", clusterName=cluster)
    except Forbidden as error:
        log.warning("%s", error.message)
        return None
    except NotFound:  # a cluster that is reached by a kubeconfig need not be an EKS cluster
        return []
    found = []
    for name in names:
        try:
            answer = session.call("eks", "describe_nodegroup", clusterName=cluster, nodegroupName=str(name))
        except Forbidden as error:
            log.warning("%s", error.message)
            return None
        except NotFound:
            continue
        found.append(dict(answer["nodegroup"]))
    return found


def workloads_of(kube: KubeClient) -> list[dict[str, Any]]:
    """Every workload that creates pods and may name the RuntimeClass."""
    kinds = (DAEMON_SET, DEPLOYMENT, REPLICA_SET, STATEFUL_SET, JOB, CRON_JOB)
    return [item for kind in kinds for item in kube.list(kind)]


def observe_users(spec: ClusterSpec, kube: KubeClient) -> dict[str, Any]:
    """The part of :class:`Observed` that shows who needs the device plugin and the RuntimeClass."""
    pools, nodes = kube.list(NODE_POOL), kube.list(NODE)
    karpenters = {node["metadata"]["name"] for node in nodes if pool_of(node)}

    def matters(pod: Mapping[str, Any]) -> bool:
        wanted = pod.get("spec") or {}
        return wanted.get("nodeName") in karpenters or wanted.get("runtimeClassName") == RUNTIME_CLASS_NAME

    return {
        "node_pools": pools,
        "nodes": nodes,
        # Only the pods themselves show who names a RuntimeClass: all are read, and few are kept.
        "pods": kube.list(POD, keep=matters),
        "workloads": workloads_of(kube),
        "node_groups": node_groups_of(spec),
    }


def observe(spec: ClusterSpec, kube: KubeClient) -> Observed:
    """Everything that the plan is made from."""
    # Here, so that a DAG file does not load what only its tasks need.
    from gpu_fleet.core.teardown.plan import releases_that_go

    karpenter_goes, instances = orphans_go(spec), instances_of(spec)
    return Observed(
        **observe_users(spec, kube),
        node_classes=kube.list(EC2_NODE_CLASS) if karpenter_goes else (),
        node_overlays=kube.list(NODE_OVERLAY) if karpenter_goes else (),
        node_claims=kube.list(NODE_CLAIM),
        instances=instances,
        volumes=volumes_of_instances(spec, [str(instance["InstanceId"]) for instance in instances]),
        persistent_volumes=kube.list(PERSISTENT_VOLUME),
        budgets=kube.list(POD_DISRUPTION_BUDGET),
        release_secrets=[
            secret
            for namespace in sorted(set(releases_that_go(spec).values()))
            for secret in kube.list_metadata(SECRET, namespace, label_selector="owner=helm")
        ],
        karpenter_pods=kube.list(POD, spec.karpenter.namespace, label_selector=KARPENTER_SELECTOR),
        now=kube.now(),
    )


def still_needed(spec: ClusterSpec, kube: KubeClient) -> dict[str, list[str]]:
    """What needs Karpenter now although it is to be uninstalled: kind, in the plural, to names; see
    ``needs_karpenter``.
    """
    observed = Observed(
        node_pools=kube.list(NODE_POOL), node_classes=kube.list(EC2_NODE_CLASS), node_overlays=kube.list(NODE_OVERLAY)
    )
    return needs_karpenter(spec, observed)


def keeps_of(plan: Mapping[str, Any] | None) -> Keeps | None:
    """What the plan of a planning task keeps; ``None`` without a plan."""
    from gpu_fleet.core.teardown.keeps import Keeps

    keeps = ((plan or {}).get("plan") or {}).get("keeps")
    return None if keeps is None else Keeps.from_json(keeps)


def decide_again(spec: ClusterSpec, kube: KubeClient, context: Mapping[str, Any], plan_task_id: str | None) -> Keeps:
    """The plan's decision on device plugin and RuntimeClass, made again: what one of the two keeps is kept.

    :param plan_task_id: task of the plan in force; ``None`` for a task outside a teardown, which has no plan.
    :raises PermanentError: ``NoPlan`` if that task has no plan: nothing is removed without an approved plan.
    """
    from gpu_fleet.core.teardown.keeps import decide

    now = decide(spec, Observed(**observe_users(spec, kube)))
    if plan_task_id is None:
        return now
    approved = keeps_of(context["ti"].xcom_pull(task_ids=plan_task_id))
    if approved is None:
        raise PermanentError(
            f"task {plan_task_id} of this run has no plan as its result, so it is unknown whether this may be removed; "
            f"clear {plan_task_id} and what follows it",
            reason="NoPlan",
        )
    return now.merged(approved)
