"""
# GPU headroom

Keeps nodes of a pool free at the hours that the cluster file names (`capacity.headroom` of a pool). Each window's cron
expression starts a run; there is no such DAG for a cluster without windows.

1. **preflight**: the cluster is ACTIVE; then the cluster lock. While another run holds it, this run waits without
   occupying a worker, and names it.
2. **open_headroom**: one placeholder of the lowest priority per node, as a Job. Idle nodes take them first; for the
   others Karpenter buys a node, never beyond `limits.nodes`. It waits for no node, and logs what the windows cost.

A user's pod takes a placeholder's place at once. When the window closes, the Jobs end by themselves, and Karpenter
removes the nodes that are idle: nothing runs until then, and no task waits. A run by hand opens what is open at that
moment, and deletes what is no longer wanted; so does every lifecycle, restoration and revalidation for its pools.
"""

from __future__ import annotations

from airflow.sdk import DAG

from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.phases.common import end_run, freeze_spec, release_turn
from gpu_fleet.phases.family import fleet_dag, fleet_dags
from gpu_fleet.phases.headroom import has_headroom, open_headroom, openings
from gpu_fleet.phases.preflight import restoring_preflight


def graph(spec: ClusterSpec) -> None:
    frozen = freeze_spec(spec)
    checked = restoring_preflight(spec)
    opened = open_headroom()

    frozen >> checked >> opened
    lived = [frozen, checked, opened]
    released = release_turn(lived)
    end_run([*lived, released], last=[released])


def build(spec: ClusterSpec) -> DAG:
    return fleet_dag(
        "gpu_headroom",
        spec,
        doc=__doc__ or "",
        graph=graph,
        schedule=openings(spec) if spec.state == "present" else None,
        tags=("capacity",),
    )


globals().update(fleet_dags("gpu_headroom", build, __file__, only=has_headroom))
