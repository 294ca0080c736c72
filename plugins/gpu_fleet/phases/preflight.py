"""Preflight: report what is wrong before the run changes anything, then take the cluster lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import TaskGroup, TriggerRule

from gpu_fleet.operators.lock import AcquireLockOperator
from gpu_fleet.operators.preflight.changes import PlanChangesOperator
from gpu_fleet.operators.preflight.checks import CheckAwsOperator, CheckToolsOperator, SelectNodeOperator
from gpu_fleet.operators.preflight.neighbours import CheckNeighboursOperator
from gpu_fleet.operators.preflight.prerequisites import CheckPrerequisitesOperator
from gpu_fleet.operators.reservations.waiting import AwaitBlocksOperator
from gpu_fleet.phases.common import Phase
from gpu_fleet.sensors.gate import GateSensor

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec

#: The task that takes the cluster lock.
ACQUIRE_TURN = "preflight.acquire_turn"
_TOOLTIP = "What can be known to be wrong before anything is changed"


def _cluster_active(spec: ClusterSpec) -> GateSensor:
    return GateSensor(
        task_id="cluster_active",
        gate="cluster_active",
        args={"cluster": spec.cluster.name, "version": spec.cluster.version},
    )


def preflight(spec: ClusterSpec) -> Phase:
    """Tools, AWS identity and offers, prerequisites in the account, and cluster ACTIVE, side by side; then other device
    plugins and what the run will change; then the cluster lock.
    """
    with TaskGroup("preflight", tooltip=_TOOLTIP):
        tools = CheckToolsOperator(task_id="check_tools")
        aws = CheckAwsOperator(task_id="check_aws")
        prerequisites = CheckPrerequisitesOperator(task_id="check_prerequisites")
        active = _cluster_active(spec)
        neighbours = CheckNeighboursOperator(task_id="check_neighbours")
        changes = PlanChangesOperator(task_id="plan_changes")
        lock = AcquireLockOperator(task_id="acquire_turn")
        active >> [neighbours, changes]
        checked = [tools, aws, prerequisites, neighbours, changes]
        heads = [tools, aws, prerequisites, active]
        tasks = [*heads, neighbours, changes, lock]
        if any(pool.capacity_block is not None for pool in spec.node_pools):
            # Before the lock: a block may begin in days. It is skipped where no pool of the run has one.
            begun = AwaitBlocksOperator(task_id="await_capacity_blocks", execution_timeout=None)
            lock.trigger_rule = TriggerRule.NONE_FAILED
            checked >> begun
            begun >> lock
            tasks.append(begun)
        checked >> lock
    return Phase(heads=heads, tails=[lock], tasks=tasks)


def revalidation_preflight(spec: ClusterSpec) -> Phase:
    """Cluster ACTIVE, and the node if the run is about a single one; then the cluster lock. If another run holds the
    lock, all later tasks are skipped.

    It checks neither helm nor EC2's offers: a revalidation installs and buys nothing.
    """
    with TaskGroup("preflight", tooltip=_TOOLTIP):
        active = _cluster_active(spec)
        node = SelectNodeOperator(task_id="select_node")
        lock = AcquireLockOperator(task_id="acquire_turn", if_taken="skip")
        [active, node] >> lock
    return Phase(heads=[active, node], tails=[lock], tasks=[active, node, lock])


def admission_preflight(spec: ClusterSpec) -> Phase:
    """Cluster ACTIVE; then the cluster lock. If another run holds it, nothing is probed: that run may prove the nodes,
    and those that it leaves are announced again."""
    with TaskGroup("preflight", tooltip=_TOOLTIP):
        active = _cluster_active(spec)
        lock = AcquireLockOperator(task_id="acquire_turn", if_taken="skip")
        active >> lock
    return Phase(heads=[active], tails=[lock], tasks=[active, lock])


def restoring_preflight(spec: ClusterSpec) -> Phase:
    """Cluster ACTIVE, then the cluster lock: nothing is installed, and what nodes need of the account was checked when
    the pools were created."""
    with TaskGroup("preflight", tooltip=_TOOLTIP):
        active = _cluster_active(spec)
        lock = AcquireLockOperator(task_id="acquire_turn")
        active >> lock
    return Phase(heads=[active], tails=[lock], tasks=[active, lock])


def draining_preflight(spec: ClusterSpec) -> Phase:
    """Cluster ACTIVE. The lock is taken only after the approval: nobody is to wait for a person's answer."""
    with TaskGroup("preflight", tooltip=_TOOLTIP):
        active = _cluster_active(spec)
    return Phase.of(active)


def teardown_preflight() -> Phase:
    """Only helm: a teardown must work on what is left of a cluster, whatever is missing.

    It comes before the approval: a person must not approve a teardown that then stops half-way.
    """
    with TaskGroup("preflight", tooltip=_TOOLTIP):
        tools = CheckToolsOperator(task_id="check_tools", to_uninstall=True)
    return Phase(heads=[tools], tails=[tools], tasks=[tools])
