"""Provision: Karpenter and its CRDs by Helm, then per pool an EC2NodeClass and a NodePool, with a NodeOverlay if it
shares; each gated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import TaskGroup

from gpu_fleet.core.manifests.overlays import overlaid, overlay_name, overlays_used
from gpu_fleet.operators.helm.releases import InstallReleaseOperator, ProveReleaseOperator
from gpu_fleet.operators.objects.node_pools import ApplyNodeClassOperator, ApplyNodePoolOperator
from gpu_fleet.phases.common import Phase
from gpu_fleet.sensors.gate import GateSensor

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec

APPLY_NODE_CLASS, APPLY_NODE_POOL = "apply_node_class", "apply_node_pool"
#: The task after which capacity may be asked for.
PROVISIONED = "provisioned"

_CRDS = ("nodepools.karpenter.sh", "nodeclaims.karpenter.sh", "ec2nodeclasses.karpenter.k8s.aws")


def provision(spec: ClusterSpec) -> Phase:
    """Karpenter first, because nothing else reads the node classes; its CRDs before it and before any of their objects.

    A component with ``manage: false`` is waited for like any other, but nothing in it is changed.
    """
    tasks: list[Any] = []
    tails: list[Any] = []
    with TaskGroup("provision", tooltip="Karpenter, node classes and node pools"):
        crds = GateSensor(
            task_id="crds_established",
            gate="crds_established",
            args={"crds": [*_CRDS, *(["nodeoverlays.karpenter.sh"] if overlays_used(spec) else [])]},
        )
        available = GateSensor(
            task_id="karpenter_available", gate="karpenter_available", args={"namespace": spec.karpenter.namespace}
        )
        tasks += [crds, available]
        heads = [crds]
        if spec.karpenter.manage:
            install_crds = InstallReleaseOperator(task_id="install_karpenter_crd", component="karpenter-crd")
            install = InstallReleaseOperator(task_id="install_karpenter", component="karpenter")
            prove = ProveReleaseOperator(task_id="prove_karpenter", component="karpenter")
            prove_crds = ProveReleaseOperator(task_id="prove_karpenter_crd", component="karpenter-crd")
            install_crds >> crds >> [install, prove_crds]
            install >> available >> prove
            heads = [install_crds]
            tasks += [install_crds, install, prove, prove_crds]
            tails += [prove, prove_crds]
        else:
            crds >> available
        for pool in spec.node_pools:
            with TaskGroup(f"pool_{pool.name}"):
                class_ready = GateSensor(task_id="node_class_ready", gate="node_class_ready", args={"name": pool.name})
                overlay = {"overlay": overlay_name(pool.name)} if overlaid(spec, pool) else {}
                pool_ready = GateSensor(
                    task_id="node_pool_ready", gate="node_pool_ready", args={"name": pool.name, **overlay}
                )
                tasks += [class_ready, pool_ready]
                tails.append(pool_ready)
                if pool.manage:
                    node_class = ApplyNodeClassOperator(task_id=APPLY_NODE_CLASS, node_pool=pool.name)
                    node_pool = ApplyNodePoolOperator(task_id=APPLY_NODE_POOL, node_pool=pool.name)
                    crds >> node_class >> class_ready >> node_pool >> pool_ready
                    tasks += [node_class, node_pool]
                else:
                    crds >> class_ready >> pool_ready
                # Only Karpenter writes the class's conditions: if it does not run, that is the reason to report.
                available >> class_ready
    return Phase(heads=heads, tails=tails, tasks=tasks)


def templates(provisioned: Phase) -> Phase:
    """The tasks of a built phase that give a pool its template; Karpenter may launch nodes of the pool after them."""
    tasks = [task for task in provisioned.tasks if task.label in (APPLY_NODE_CLASS, APPLY_NODE_POOL)]
    return Phase(tasks, tasks, tasks)


def all_provisioned() -> Phase:
    """One task between what is provisioned and every pool's capacity; it does nothing and costs no worker.

    Without it each pool would be related to each other pool.
    """
    return Phase.of(EmptyOperator(task_id=PROVISIONED))
