"""
# GPU teardown

Removes a cluster's GPU capacity and shows that nothing is left that costs money: plan, approval, freeze the pools,
drain, delete the NodePools while Karpenter still runs, wait until EC2 reports that the instances are gone; then node
classes, device plugin, RuntimeClass and Karpenter; at the end a leak check.

The plan lists what is removed and what it costs, whose pods are evicted, what blocks the drain, and what is kept and
why. Pods that must not be evicted, such as those of Airflow's pod operators, fail it before it asks for an approval. A
drain that fails before it has evicted a pod takes cordons and freeze back. Device plugin and RuntimeClass are kept
while others need them.

It works from whatever state an earlier run, or a person, left, and can be run again at any point. Start it by hand.
"""

from __future__ import annotations

from airflow.sdk import DAG

from gpu_fleet.core.drain.rules import PARAM_BARE_PODS
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.phases.common import end_run, freeze_spec
from gpu_fleet.phases.family import fleet_dag, fleet_dags
from gpu_fleet.phases.preflight import teardown_preflight
from gpu_fleet.phases.teardown import TORN_DOWN, bare_pods_param, teardown


def graph(spec: ClusterSpec) -> None:
    frozen = freeze_spec(spec)
    checked = teardown_preflight()
    removed = teardown(spec)

    frozen >> checked >> removed
    end_run([frozen, checked, removed], last=[removed], torn_down=TORN_DOWN)


def build(spec: ClusterSpec) -> DAG:
    return fleet_dag(
        "gpu_teardown",
        spec,
        doc=__doc__ or "",
        graph=graph,
        params={PARAM_BARE_PODS: bare_pods_param()},
        tags=("teardown",),
    )


globals().update(fleet_dags("gpu_teardown", build, __file__))
