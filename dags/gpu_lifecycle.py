"""
# GPU lifecycle

The whole life of a cluster's GPU capacity in one graph. Start it by hand, over the REST API or from CI.

1. **preflight**: checks tools, AWS identity, what nodes and Karpenter need in the account, and that the cluster is
   ACTIVE; that no second device plugin serves our nodes (task `check_neighbours`); reports which nodes this run makes
   drift, and whose jobs run there, before anything is applied (task `plan_changes`); then takes the cluster lock, so
   that no two runs change it at the same time.
2. **provision** beside **rollout**: Karpenter, node classes and node pools; the RuntimeClass and, strictly after it,
   the NVIDIA device plugin.
3. **capacity**: requests the wanted nodes of each pool and waits until every node offers exactly
   `physical GPUs x replicas`. With the Param `proveBurst`, an empty shared pool first shows that a burst of pods buys
   exactly the nodes that it needs.
4. **prove**: marks the device plugin's revision as proven, or rolls it back to the last proven one.
5. **validation**: runs vectorAdd, then sharing (or exclusive use) on every node, and publishes the result as assets.
   With the Param `replaceDrifted: idle`, drifted nodes without users are removed once their replacements are proven.
6. with the Param `until: torn_down`, after an approval: drain, teardown and leak check. They run also if an earlier
   phase failed, because that is when things leak; the run stays failed.

Every task can be retried or cleared; a second run that finds everything in place changes nothing. Probes,
placeholders, protection and lock are released whatever happens, also if a person marks the run failed.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from gpu_fleet.core.drain.rules import PARAM_BARE_PODS
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.phases.capacity import capacity
from gpu_fleet.phases.common import end_run, freeze_spec, release_turn
from gpu_fleet.phases.family import fleet_dag, fleet_dags
from gpu_fleet.phases.preflight import preflight
from gpu_fleet.phases.prove import prove
from gpu_fleet.phases.provision import all_provisioned, provision, templates
from gpu_fleet.phases.rollout import rollout
from gpu_fleet.phases.teardown import TORN_DOWN, bare_pods_param, teardown, teardown_requested
from gpu_fleet.phases.validation import validation


def graph(spec: ClusterSpec) -> None:
    frozen = freeze_spec(spec, provisions=True)
    checked = preflight(spec)
    provisioned = provision(spec)
    rolled_out = rollout(spec)
    ready = all_provisioned()
    asked = capacity(spec)
    proven = prove(spec, asked)
    validated = validation(spec)

    frozen >> checked >> [provisioned, rolled_out] >> ready
    if spec.device_plugin.manage:
        # A node carries the config entry that its NodePool names: the plugin must know it before a node can come.
        rolled_out >> templates(provisioned)
    for pool in spec.node_pools:
        ready >> asked[pool.name] >> validated[pool.name]
        if pool.wanted_nodes:  # an idle pool has no node that could prove anything
            proven >> validated[pool.name]

    lived = [frozen, checked, provisioned, rolled_out, ready, *asked.values(), proven, *validated.values()]
    released = release_turn(lived)
    requested = teardown_requested()
    removed = teardown(spec)
    released >> requested >> removed
    # After the first release, too: if a person ends the run, it still waits for the clean-up when the second is done.
    end_run([*lived, released, requested, removed], last=[released, requested, removed], torn_down=TORN_DOWN)


def build(spec: ClusterSpec) -> DAG:
    return fleet_dag(
        "gpu_lifecycle",
        spec,
        doc=__doc__ or "",
        graph=graph,
        params={
            "until": Param(
                "validated",
                type="string",
                enum=["validated", "torn_down"],
                title="Run until",
                description="validated: keep the capacity. torn_down: after an approval, remove everything again.",
            ),
            "pools": Param(
                [],
                type="array",
                items={"type": "string", "enum": list(spec.pool_names)},
                examples=list(spec.pool_names),
                title="Pools",
                description="Request and validate the capacity of these pools only; none selected means all.",
            ),
            PARAM_BARE_PODS: bare_pods_param(),
            "replaceDrifted": Param(
                "none",
                type="string",
                enum=["none", "idle"],
                title="Replace drifted nodes",
                description="none: report drifted nodes and keep them. idle: replace those on which no user's pod "
                "holds a GPU, at most disruption.replaceAtOnce per pool, each after a new node has been proven.",
            ),
            "proveBurst": Param(
                False,
                type="boolean",
                title="Prove what a burst buys",
                description="First request twice the shares of one node at once on each shared pool that is empty and "
                "may have three nodes: Karpenter must buy exactly two. Costs two nodes.",
            ),
        },
        tags=("lifecycle",),
    )


globals().update(fleet_dags("gpu_lifecycle", build, __file__))
