"""
# GPU admission

Proves nodes that Karpenter has added to gated pools (`validation.admission: gated`) for users' pods, and lets these
pods in. Such a node starts it: until its GPUs are proven, the startup taint `gpu-fleet.io/unproven` keeps users' pods
away. Nodes that a lifecycle brings are proven by that lifecycle.

1. **preflight**: the cluster is ACTIVE; then the cluster lock. If another run holds it, nothing is probed, and
   the nodes are announced again.
2. **admission** of every gated pool: the pool's probe on the nodes that take no pods yet, and only there. A node that
   passes is opened. One that fails stays closed, with the reason in its condition `gpu-fleet.io/Proven`, and may be
   quarantined, according to `validation.onFailure`. One that can be neither proven nor disproven within
   `validation.admitWithin` is treated as `validation.admitUnproven` says.

Nothing is bought, measured or published. Probes, protection and lock are released whatever happens, also if a person
marks the run failed. While this DAG is paused, or Airflow is down, new nodes stay closed.
"""

from __future__ import annotations

from airflow.sdk import DAG

from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.phases.admission import admission
from gpu_fleet.phases.common import end_run, freeze_spec, release_turn
from gpu_fleet.phases.family import fleet_dag, fleet_dags
from gpu_fleet.phases.preflight import ACQUIRE_TURN, admission_preflight
from gpu_fleet.triggers.admission import unproven_asset


def graph(spec: ClusterSpec) -> None:
    frozen = freeze_spec(spec, provisions=True)
    checked = admission_preflight(spec)
    admitted = admission(spec)

    frozen >> checked >> list(admitted.values())
    lived = [frozen, checked, *admitted.values()]
    released = release_turn(lived)
    end_run([*lived, released], last=[released], turn=ACQUIRE_TURN)


def has_gated_pools(spec: ClusterSpec) -> bool:
    return any(spec.gated(pool) for pool in spec.node_pools)


def build(spec: ClusterSpec) -> DAG:
    asset = unproven_asset(spec)
    return fleet_dag(
        "gpu_admit",
        spec,
        doc=__doc__ or "",
        graph=graph,
        schedule=[asset] if asset is not None else None,
        tags=("admission",),
    )


globals().update(fleet_dags("gpu_admit", build, __file__, only=has_gated_pools))
