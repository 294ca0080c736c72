"""
# GPU teardown

Removes a cluster's GPU capacity and shows that nothing is left that costs money: plan with cost, approval, freeze the
pools, drain, delete the NodePools while Karpenter still runs, wait until EC2 says that the instances are gone; then the
node classes, device plugin, RuntimeClass and Karpenter; at the end a leak check.

It works on whatever state an earlier run, or a person, left, and can be run again at any point. Start it by hand.
"""

from __future__ import annotations

from airflow.sdk import DAG

from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.phases.family import fleet_dag, fleet_dags
from gpu_fleet.phases.lifecycle import teardown_graph


def build(spec: ClusterSpec) -> DAG:
    return fleet_dag("gpu_teardown", spec, doc=__doc__ or "", graph=teardown_graph, tags=("teardown",))


globals().update(fleet_dags("gpu_teardown", build))
