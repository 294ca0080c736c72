"""The graphs of the two DAGs, made of the phases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import TriggerRule, cross_downstream

from gpu_fleet.operators.base import FREEZE_SPEC_TASK_ID
from gpu_fleet.operators.lock import ReleaseLockOperator
from gpu_fleet.operators.spec import FreezeSpecOperator
from gpu_fleet.operators.verdict import TeardownRequestedOperator, TornDown
from gpu_fleet.phases.capacity import capacity
from gpu_fleet.phases.common import end_run, settle
from gpu_fleet.phases.preflight import preflight, teardown_preflight
from gpu_fleet.phases.prove import prove
from gpu_fleet.phases.provision import APPLY_NODE_CLASS, APPLY_NODE_POOL, provision
from gpu_fleet.phases.rollout import rollout
from gpu_fleet.phases.teardown import APPROVE, LEAK_CHECK, PLAN, teardown
from gpu_fleet.phases.validation import validation

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec


TORN_DOWN = TornDown(plan=PLAN, approval=APPROVE, leak_check=LEAK_CHECK)
#: The task after which capacity may be asked for; it does nothing and costs no worker.
PROVISIONED = "provisioned"


def lifecycle_graph(spec: ClusterSpec) -> None:
    """preflight -> provision beside rollout -> capacity -> prove -> validation -> publish, then teardown on request."""
    freeze = FreezeSpecOperator(task_id=FREEZE_SPEC_TASK_ID, cluster=spec.name, provisions=True)
    before = preflight(spec)
    freeze >> before.heads
    provisioned = provision(spec)
    rolled_out = rollout(spec)
    cross_downstream(before.tails, provisioned.heads + rolled_out.heads)
    if spec.device_plugin.manage:
        # A node carries the config entry that its NodePool names: the plugin has to know it before a node can come.
        for task in provisioned.tasks:
            if task.label in (APPLY_NODE_CLASS, APPLY_NODE_POOL):
                cross_downstream(rolled_out.tails, [task])
    # One task between them and every pool's capacity: else each pool would be related to each other.
    ready = EmptyOperator(task_id=PROVISIONED)
    cross_downstream(provisioned.tails + rolled_out.tails, [ready])
    pools = capacity(spec)
    for phase in pools.values():
        cross_downstream([ready], phase.heads)
    tasks = [freeze, *before.tasks, *provisioned.tasks, *rolled_out.tasks, ready]
    tasks += [task for phase in pools.values() for task in phase.tasks]

    # Where no node is wanted, there is none that could prove anything: such a pool is idle, not a failure.
    wanting = [pool.name for pool in spec.node_pools if pool.wanted_nodes]
    proofs = []
    if spec.device_plugin.manage and wanting:
        proven = prove([tail for name in wanting for tail in pools[name].tails])
        proofs = proven.tails
        tasks += proven.tasks
    for name, phase in validation(spec).items():
        cross_downstream([*pools[name].tails, *(proofs if name in wanting else [])], phase.heads)
        tasks += phase.tasks

    release = ReleaseLockOperator(task_id="release_turn").as_teardown()
    cross_downstream(settle(tasks), [release])
    requested = TeardownRequestedOperator(task_id="teardown_requested", trigger_rule=TriggerRule.ALL_DONE)
    removed = teardown(spec)
    release >> requested >> removed.heads
    tasks += [release, requested, *removed.tasks]
    # The first release, too: when a person ends the run, it is still waiting for the clean-up when the second is done.
    end_run(tasks, [release, requested, *removed.tails], torn_down=TORN_DOWN)


def teardown_graph(spec: ClusterSpec) -> None:
    """The lifecycle's last phases alone; works on whatever an earlier run, or a person, left."""
    freeze = FreezeSpecOperator(task_id=FREEZE_SPEC_TASK_ID, cluster=spec.name)
    before = teardown_preflight()
    removed = teardown(spec)
    freeze >> before.heads
    cross_downstream(before.tails, removed.heads)
    end_run([freeze, *before.tasks, *removed.tasks], removed.tails, torn_down=TORN_DOWN)
