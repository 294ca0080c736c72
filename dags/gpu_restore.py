"""
# GPU restoration

Brings pools back to what the spec promises after they lost nodes, and proves it: nothing is installed, and no manifest
is applied. `gpu_spot_drain` starts it for the pools that an interruption hit; start it by hand for others.

1. **preflight**: the cluster is ACTIVE; then the cluster lock. While another run holds it, this run waits and names it.
2. **capacity**: requests the nodes that each pool lacks of its `wantedNodes`, and waits until every node offers exactly
   `physical GPUs x replicas`.
3. **validation**: vectorAdd, then sharing (or exclusive use) on every node, as in the lifecycle, and the pools' assets:
   `ready` when a pool is whole again, `not-ready` when it is not.

The Param `pools` limits it to these. Probes, placeholders, protection and lock are released whatever happens, also if a
person marks the run failed.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.phases.capacity import capacity
from gpu_fleet.phases.common import end_run, freeze_spec, release_turn
from gpu_fleet.phases.family import fleet_dag, fleet_dags
from gpu_fleet.phases.preflight import restoring_preflight
from gpu_fleet.phases.validation import validation


def graph(spec: ClusterSpec) -> None:
    frozen = freeze_spec(spec, provisions=True)
    checked = restoring_preflight(spec)
    asked = capacity(spec)
    validated = validation(spec)

    frozen >> checked
    for pool in spec.node_pools:
        checked >> asked[pool.name] >> validated[pool.name]

    lived = [frozen, checked, *asked.values(), *validated.values()]
    released = release_turn(lived)
    end_run([*lived, released], last=[released])


def build(spec: ClusterSpec) -> DAG:
    return fleet_dag(
        "gpu_restore",
        spec,
        doc=__doc__ or "",
        graph=graph,
        params={
            "pools": Param(
                [],
                type="array",
                items={"type": "string", "enum": list(spec.pool_names)},
                examples=list(spec.pool_names),
                title="Pools",
                description="Restore these pools only; none selected means all.",
            ),
        },
        tags=("restoration",),
    )


globals().update(fleet_dags("gpu_restore", build, __file__))
