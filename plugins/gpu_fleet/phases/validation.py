"""Validation: protect the nodes, remove placeholders, probe every GPU, clean up whatever happened, publish.

One probe task per pool: it fills every node at once and covers vectorAdd, the containers side by side with their GPU
UUIDs, the pod too many and the physical count. Separate tasks would wait, and pay for a deferral, several times. A
revalidation, for which no user waits, then measures throughput and, if the spec asks for it, runs DCGM's diagnostics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import TaskGroup, TriggerRule

from gpu_fleet.core.probes.plan import Probe
from gpu_fleet.operators.admission.admit import AdmitNodesOperator
from gpu_fleet.operators.validation.cleanup import CleanUpValidationOperator
from gpu_fleet.operators.validation.holding import HoldCapacityOperator, ReleasePlaceholdersOperator
from gpu_fleet.operators.validation.nodes import ProtectNodesOperator
from gpu_fleet.operators.validation.probes import RunProbesOperator
from gpu_fleet.operators.validation.publish import PublishPoolOperator
from gpu_fleet.operators.validation.replacement import ReplaceDriftedOperator
from gpu_fleet.phases.common import Phase

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec, NodePool


def probe_of(spec: ClusterSpec, pool: NodePool) -> Probe:
    """The probe of the pool; with that one switched off in the spec, vectorAdd: that the GPUs work at all."""
    wanted = spec.validation.probes
    if pool.shared:
        return Probe.SHARING if wanted.sharing else Probe.VECTORADD
    return Probe.EXCLUSIVE if wanted.exclusive else Probe.VECTORADD


def measuring_probes(spec: ClusterSpec) -> list[Probe]:
    """What a revalidation measures beyond the pool's probe."""
    wanted = spec.validation.probes
    return [
        *([Probe.THROUGHPUT] if wanted.throughput else []),
        *([Probe.DCGM] if wanted.dcgm is not None else []),
    ]


def validation(spec: ClusterSpec, *, measure: bool = False) -> dict[str, Phase]:
    """One chain per pool, side by side; a pool that fails does not affect the others' verdicts.

    :param measure: for a revalidation: validate whatever nodes exist, measure throughput and run diagnostics, and hold
        no capacity for later jobs. Nodes that failed do not keep the others from being measured.
    """
    phases: dict[str, Phase] = {}
    with TaskGroup("validation", tooltip="Proof that GPUs work and are shared as promised"):
        for pool in spec.node_pools:
            with TaskGroup(f"pool_{pool.name}"):
                protect = ProtectNodesOperator(task_id="protect_nodes", node_pool=pool.name, all_wanted=not measure)
                free = ReleasePlaceholdersOperator(task_id="release_placeholders", node_pool=pool.name)
                probe = str(probe_of(spec, pool))
                probes = RunProbesOperator(task_id=probe, node_pool=pool.name, probe=probe)
                clean = CleanUpValidationOperator(task_id="clean_up", node_pool=pool.name).as_teardown()
                publish = PublishPoolOperator(task_id="publish", node_pool=pool.name, trigger_rule=TriggerRule.ALL_DONE)
                chain = [probes]
                for kind in measuring_probes(spec) if measure else []:
                    chain.append(
                        RunProbesOperator(
                            task_id=str(kind),
                            node_pool=pool.name,
                            probe=str(kind),
                            trigger_rule=TriggerRule.ALL_DONE,
                        )
                    )
                    chain[-2] >> chain[-1]
                protect >> free >> probes
                for task in chain:
                    task >> [clean, publish]
                tasks = [protect, free, *chain, clean, publish]
                if spec.gated(pool):
                    # Before the clean-up: until then the node is protected, and Karpenter may remove an idle node as
                    # soon as it is initialized.
                    admit = AdmitNodesOperator(
                        task_id="admit_nodes", node_pool=pool.name, trigger_rule=TriggerRule.ALL_DONE
                    )
                    chain >> admit >> [clean, publish]
                    tasks.append(admit)
                before_hold = probes
                if pool.manage and not measure:
                    # After the pool is proven: a node that is removed is not held, and its replacement is proven.
                    before_hold = replace = ReplaceDriftedOperator(task_id="replace_drifted", node_pool=pool.name)
                    probes >> replace
                    tasks.append(replace)
                if pool.capacity.hold and not measure:
                    # Before the clean-up, which removes the protection: an idle node may be consolidated at once.
                    hold = HoldCapacityOperator(task_id="hold_capacity", node_pool=pool.name)
                    before_hold >> hold >> [clean, publish]
                    tasks.append(hold)
            phases[pool.name] = Phase(heads=[protect], tails=[clean, publish], tasks=tasks)
    return phases
