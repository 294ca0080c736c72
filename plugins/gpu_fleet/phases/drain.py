"""A drain by hand: plan, approval, cordon, replacements on request, drain, removal; and what it leaves if it fails.

With the Param ``replaceFirst`` as many new nodes are requested and validated before the first eviction, pool by pool,
with the tasks of every other run that provides capacity; without it these are skipped. The new nodes stay protected
until the drain is over, because nothing runs there before.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import TaskGroup, TriggerRule

from gpu_fleet.operators.admission.admit import AdmitNodesOperator
from gpu_fleet.operators.base import DRAIN_TASK_ID
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.interruptions.cordons import CordonNodesOperator, UndoCordonsOperator
from gpu_fleet.operators.interruptions.manual_drain import DrainByHandOperator, RemoveDrainedOperator
from gpu_fleet.operators.interruptions.manual_plan import DrainApprovalOperator, PlanDrainOperator
from gpu_fleet.operators.interruptions.placed import AwaitPlacementOperator
from gpu_fleet.operators.interruptions.publish import PublishLostOperator
from gpu_fleet.operators.interruptions.verdict import NothingLostOperator
from gpu_fleet.operators.lock import AcquireLockOperator
from gpu_fleet.operators.reservations.booking import BookBlockEndOperator
from gpu_fleet.operators.reservations.ending import CheckBlockEndOperator, StopAdmittingOperator
from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from gpu_fleet.operators.validation.holding import ReleasePlaceholdersOperator
from gpu_fleet.operators.validation.nodes import ProtectNodesOperator
from gpu_fleet.operators.validation.probes import RunProbesOperator
from gpu_fleet.operators.validation.publish import PublishPoolOperator
from gpu_fleet.phases.common import Phase
from gpu_fleet.phases.validation import probe_of

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec

PLAN, PLAN_AGAIN = "plan", "plan_again"
APPROVAL_BODY = "{{ ti.xcom_pull(task_ids='plan')['markdown'] }}"
#: Longest deadline of a drain, in minutes: the task that drains holds a worker for so long.
LONGEST_MIN = 360
#: Seconds that the task needs beside the drain itself.
SLACK_S = 600.0


def planned(spec: ClusterSpec) -> Phase:
    """The plan and the answer to it, then the cluster lock and the plan again.

    The lock is not held while the approval is pending. The new plan is about the same nodes.
    """
    plan = PlanDrainOperator(task_id=PLAN)
    approve = DrainApprovalOperator(
        task_id="approve",
        plan_task_id=plan.task_id,
        subject=f"Drain GPU nodes of cluster {spec.name}?",
        body=APPROVAL_BODY,
        response_timeout=spec.deadlines.approval.timedelta,
        execution_timeout=None,
    )
    lock = AcquireLockOperator(task_id="acquire_turn")
    again = PlanDrainOperator(task_id=PLAN_AGAIN, approved_task_id=plan.task_id)
    plan >> approve >> lock >> again
    return Phase(heads=[plan], tails=[again], tasks=[plan, approve, lock, again])


def block_due(spec: ClusterSpec) -> Phase:
    """Of a run that was booked for the end of a Capacity Block: it is skipped if the block was extended, and the next
    end is booked. Without such pools there is nothing."""
    if not has_blocks(spec):
        return Phase()
    due = CheckBlockEndOperator(task_id="block_due")
    again = BookBlockEndOperator(
        task_id="book_next", trigger_dag_id=f"gpu_drain.{spec.name}", trigger_rule=TriggerRule.ALL_DONE
    )
    due >> again
    return Phase(heads=[due], tails=[due], tasks=[due, again])


def has_blocks(spec: ClusterSpec) -> bool:
    return any(pool.capacity_block is not None for pool in spec.node_pools)


@dataclass(frozen=True)
class Replacements:
    """The pools' tasks before the drain.

    :ivar proven: the tasks that the drain waits for.
    :ivar clean_ups: the tasks that wait for the drain.
    """

    heads: list[Any]
    proven: list[Any]
    clean_ups: list[Any]
    tasks: list[Any]


def replacements(spec: ClusterSpec) -> Replacements:
    """One chain per pool, side by side: request, wait, probe, publish. Skipped in pools that the plan does not name."""
    found = Replacements([], [], [], [])
    with TaskGroup("replacement", tooltip="With replaceFirst: new nodes, validated before the drain"):
        for pool in spec.node_pools:
            with TaskGroup(f"pool_{pool.name}"):
                request = RequestCapacityOperator(
                    task_id="request_capacity", node_pool=pool.name, surge_task_id=PLAN_AGAIN
                )
                wait = AwaitCapacityOperator(task_id="await_capacity", node_pool=pool.name, all_come=True)
                protect = ProtectNodesOperator(task_id="protect_nodes", node_pool=pool.name, all_wanted=True)
                free = ReleasePlaceholdersOperator(task_id="release_placeholders", node_pool=pool.name)
                kind = str(probe_of(spec, pool))
                probe = RunProbesOperator(task_id=kind, node_pool=pool.name, probe=kind)
                publish = PublishPoolOperator(task_id="publish", node_pool=pool.name, trigger_rule=TriggerRule.ALL_DONE)
                clean = CleanUpValidationOperator(task_id="clean_up", node_pool=pool.name).as_teardown()
                request >> wait >> protect >> free >> probe >> [publish, clean]
                tasks = [request, wait, protect, free, probe, publish, clean]
                proven: list[Any] = [probe]
                if spec.gated(pool):
                    # The evicted pods are to run there.
                    admit = AdmitNodesOperator(
                        task_id="admit_nodes", node_pool=pool.name, trigger_rule=TriggerRule.ALL_DONE
                    )
                    probe >> admit >> [publish, clean]
                    tasks.append(admit)
                    proven.append(admit)
            found.heads.append(request)
            found.proven.extend(proven)
            found.clean_ups.append(clean)
            found.tasks.extend(tasks)
    return found


def drained(spec: ClusterSpec) -> tuple[Phase, Phase]:
    """Cordon, replacements, drain, removal, and the publication of what the pools lost; and, apart because it needs no
    lock, the wait until the evicted pods run elsewhere, and whether a deadline was too short for some.
    """
    longest = max(60.0 * LONGEST_MIN, float(spec.deadlines.drain))
    cordon = CordonNodesOperator(task_id="cordon", plan_task_id=PLAN_AGAIN)
    first = replacements(spec)
    drain = DrainByHandOperator(
        task_id=DRAIN_TASK_ID,
        plan_task_id=PLAN_AGAIN,
        approved_task_id=PLAN,
        # Skipped pools do not skip the drain, and a run that ends at its plan does.
        trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
        execution_timeout=timedelta(seconds=longest + SLACK_S),
    )
    remove = RemoveDrainedOperator(task_id="remove", plan_task_id=PLAN_AGAIN)
    undo = UndoCordonsOperator(task_id="undo_cordons", last=remove.task_id).as_teardown()
    publish = PublishLostOperator(task_id="publish_lost", cluster=spec.name, pools=spec.pool_names, by_hand=True)
    placed = AwaitPlacementOperator(task_id="pods_placed")
    lost = NothingLostOperator(task_id="nothing_lost")
    before = [cordon]
    if has_blocks(spec):
        stop = StopAdmittingOperator(task_id="stop_admitting", plan_task_id=PLAN_AGAIN, execution_timeout=None)
        cordon >> stop >> drain
        before.append(stop)
    cordon >> [*first.heads, drain]
    for proven in first.proven:
        proven >> drain
    drain >> [remove, placed, lost, *first.clean_ups]
    remove >> [publish, undo]
    tasks = [*before, *first.tasks, drain, remove, undo, publish]
    after = [placed, lost]
    return Phase(heads=[cordon], tails=[publish], tasks=tasks), Phase(heads=after, tails=after, tasks=after)
