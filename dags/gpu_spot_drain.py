"""
# GPU spot drain

Drains GPU nodes that EC2 is about to take, before it does: spot interruptions, capacity reservations that end, and
instances that are stopped. Messages in the queue `interruptions.queue` start it; by the time a run begins, the node is
already cordoned and marked (by the trigger that read the message).

1. **drain**: finds the nodes by their marks and evicts their pods, all nodes side by side. Where Karpenter handles
   interruptions, it evicts first. A pod that a PodDisruptionBudget still holds is deleted so early that its own grace
   period ends before the instance does (`interruptions.margin`). A node with a scheduled change is watched, if
   Karpenter begins to drain it within 75 seconds of the message; else a run of `gpu_drain` is planned.
2. **publish_lost**: pools that have less than they promised are not ready; **restore_pools** starts a run of
   `gpu_restore`, which requests what is missing, proves it, and publishes the pool as ready again.
3. **pods_placed**: waits until the evicted pods run elsewhere, and says what the scheduler says if they do not.
4. **nothing_lost**: fails, and so does the run, if a pod ended with its instance.

The report (link *Report* of each task) names every node and pod, what happened when, and where the pods went. A run
that a person starts drains what is marked and not handled. No run waits for the cluster lock, and several may be under
way: each node is handled by one of them.
"""

from __future__ import annotations

from airflow.sdk import DAG

from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.phases.common import end_run
from gpu_fleet.phases.family import fleet_dag, fleet_dags
from gpu_fleet.phases.interruptions import after_interruption, drain_interrupted
from gpu_fleet.triggers.interruptions import interruptions_asset

#: Runs at a time. Each has one task while it is urgent, and a queued run is a node that nobody drains.
AT_ONCE = 16


def graph(spec: ClusterSpec) -> None:
    drained = drain_interrupted(spec)
    followed = after_interruption(spec)
    drained >> followed
    end_run([drained, followed], last=[followed])


def build(spec: ClusterSpec) -> DAG:
    asset = interruptions_asset(spec)
    return fleet_dag(
        "gpu_spot_drain",
        spec,
        doc=__doc__ or "",
        graph=graph,
        schedule=[asset] if asset is not None else None,
        tags=("interruptions",),
        max_active_runs=AT_ONCE,
    )


globals().update(fleet_dags("gpu_spot_drain", build, __file__))
