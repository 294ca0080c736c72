"""Teardown: plan with cost, approval, freeze, drain, then deletion in the only order that leaks nothing.

NodePools are deleted first, while Karpenter still runs: its finalizers terminate the instances. The node classes, the
plugin and Karpenter itself follow only when EC2 reports that the instances are gone. If a drain fails before a pod was
evicted, freeze and cordons are taken back when the last drain is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import Param, TaskGroup, TriggerRule

from gpu_fleet.core.teardown.scope import orphans_go
from gpu_fleet.operators.helm.releases import UninstallReleaseOperator
from gpu_fleet.operators.lock import AcquireLockOperator, ReleaseLockOperator
from gpu_fleet.operators.teardown.approval import TeardownApprovalOperator
from gpu_fleet.operators.teardown.delete import DeleteNodeClassesOperator, DeleteRuntimeClassOperator
from gpu_fleet.operators.teardown.drain_pools import DrainPoolOperator, DrainRemovedPoolsOperator
from gpu_fleet.operators.teardown.freeze import FreezePoolsOperator, UndoFreezeOperator
from gpu_fleet.operators.teardown.leaks import LeakCheckOperator
from gpu_fleet.operators.teardown.node_pools import DeleteNodePoolsOperator
from gpu_fleet.operators.teardown.plan import PlanTeardownOperator
from gpu_fleet.operators.validation.publish import PublishPoolOperator
from gpu_fleet.operators.verdict import TeardownRequestedOperator, TornDown
from gpu_fleet.phases.common import Phase, chain_ends
from gpu_fleet.sensors.gate import GateSensor

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec

PLAN, APPROVE, LEAK_CHECK = "teardown.plan", "teardown.approve", "teardown.leak_check"
#: The tasks whose results show the run's verdict that a teardown took place.
TORN_DOWN = TornDown(plan=PLAN, approval=APPROVE, leak_check=LEAK_CHECK)
APPROVAL_BODY = "{{ ti.xcom_pull(task_ids='teardown.plan')['markdown'] }}"


def teardown_requested() -> Phase:
    """Lets the teardown begin if the run's Param ``until`` asks for it, also after a failure; else skips it."""
    return Phase.of(TeardownRequestedOperator(task_id="teardown_requested", trigger_rule=TriggerRule.ALL_DONE))


def bare_pods_param() -> Param:
    """The Param :data:`gpu_fleet.core.drain.rules.PARAM_BARE_PODS` of the DAGs with a teardown."""
    return Param(
        False,
        type="boolean",
        title="Evict bare pods",
        description="In a teardown: also evict pods without a controller, such as those of Airflow's pod operators, "
        "although nothing recreates them. Like drain.force, but for this run.",
    )


def teardown(spec: ClusterSpec) -> Phase:
    """The cluster lock is not held while the approval is pending: it is taken after it, and a new plan is made.

    The new plan may remove less than the approved one, never more.
    """
    cluster = {"cluster": spec.cluster.name, "standalone_stays": not orphans_go(spec)}
    classes_that_go = {"spec": spec.name, "kept": [pool.name for pool in spec.node_pools if not pool.manage]}
    with TaskGroup("teardown", tooltip="Remove the GPU capacity and show that nothing is left"):
        plan = PlanTeardownOperator(task_id="plan")
        approve = TeardownApprovalOperator(
            task_id="approve",
            plan_task_id=plan.task_id,
            subject=f"Tear down the GPU capacity of cluster {spec.name}?",
            body=APPROVAL_BODY,
            response_timeout=spec.deadlines.approval.timedelta,
            execution_timeout=None,
        )
        lock = AcquireLockOperator(task_id="acquire_turn")
        replan = PlanTeardownOperator(task_id="plan_again", approved_task_id=plan.task_id)
        freeze = FreezePoolsOperator(task_id="freeze_pools")
        drains: list[Any] = [
            DrainPoolOperator(task_id=f"drain_{pool.name}", node_pool=pool.name) for pool in spec.node_pools
        ]
        drains.append(
            DrainRemovedPoolsOperator(
                task_id="drain_removed_pools", drained=list(spec.pool_names), plan_task_id=replan.task_id
            )
        )
        # An Airflow teardown task, too: a run that a person ends must not leave pools frozen for no reason.
        undo = UndoFreezeOperator(
            task_id="undo_freeze",
            turn=lock.task_id,
            freeze=freeze.task_id,
            drains=[drain.task_id for drain in drains],
        ).as_teardown()
        delete = DeleteNodePoolsOperator(task_id="delete_node_pools", approved_task_id=plan.task_id)
        # In an emergency the result names the pools that it is limited to.
        claims_gone = GateSensor(
            task_id="node_claims_gone", gate="nodeclaims_gone", args={**cluster, "removed": delete.output}
        )
        instances_gone = GateSensor(task_id="instances_gone", gate="instances_gone", args=cluster)
        classes = DeleteNodeClassesOperator(task_id="delete_node_classes")
        classes_gone = GateSensor(task_id="node_classes_gone", gate="node_class_gone", args=classes_that_go)
        # Also after a failure, because that is when things leak; not after a rejection, which skips the rest.
        leaks = LeakCheckOperator(
            task_id="leak_check", plan_task_id=plan.task_id, trigger_rule=TriggerRule.NONE_SKIPPED
        )
        release = ReleaseLockOperator(task_id="release_turn").as_teardown()

        plan >> approve >> lock >> replan >> freeze >> drains
        for drain in drains:
            drain >> [delete, undo]
        delete >> claims_gone >> instances_gone >> classes >> classes_gone
        tasks: list[Any] = [
            *(plan, approve, lock, replan, freeze, *drains, undo, delete, claims_gone),
            *(instances_gone, classes, classes_gone, leaks),
        ]
        for pool in spec.node_pools:
            gone = PublishPoolOperator(task_id=f"publish_{pool.name}", node_pool=pool.name, torn_down=True)
            instances_gone >> gone
            tasks.append(gone)
        if spec.device_plugin.manage and spec.teardown.uninstall_device_plugin:
            plugin = UninstallReleaseOperator(
                task_id="uninstall_device_plugin", component="device-plugin", plan_task_id=replan.task_id
            )
            instances_gone >> plugin
            tasks.append(plugin)
            if spec.runtime_class.manage:
                runtime_class = DeleteRuntimeClassOperator(task_id="delete_runtime_class", plan_task_id=replan.task_id)
                # The plugin's pods name the class, so it is deleted after them.
                plugin >> runtime_class
                tasks.append(runtime_class)
        if spec.karpenter.manage and spec.teardown.uninstall_karpenter:
            karpenter = UninstallReleaseOperator(task_id="uninstall_karpenter", component="karpenter")
            crds = UninstallReleaseOperator(task_id="uninstall_karpenter_crd", component="karpenter-crd")
            # Karpenter must have served its finalizers on the node classes before its controller is uninstalled.
            classes_gone >> karpenter >> crds
            tasks += [karpenter, crds]
        for task in chain_ends(task for task in tasks if task is not leaks):
            task >> leaks
        for task in chain_ends(tasks):
            task >> release
        tasks.append(release)
    return Phase(heads=[plan], tails=[release], tasks=tasks)


__all__ = [
    "APPROVAL_BODY",
    "APPROVE",
    "LEAK_CHECK",
    "PLAN",
    "TORN_DOWN",
    "bare_pods_param",
    "teardown",
    "teardown_requested",
]
