"""
# GPU drain

Empties GPU nodes that a person chooses, and removes them: nodes by name, pools, or an availability zone.
`gpu_spot_drain` starts it for nodes that EC2 will take later (rebalance recommendations, scheduled changes).

1. **plan**: which nodes, every pod there with its rule and fate, whose GPU pods are hit, what PodDisruptionBudgets
   refuse now, and what it costs. With the Param `dryRun` the run ends here; the report (link *Report*) shows the plan.
2. **approve**: a person's answer, if users' pods that hold GPUs are evicted. Then the cluster lock, and the plan again:
   the same nodes, and no more users' GPU pods.
3. **cordon**. With `replaceFirst`, as many new nodes are then requested and validated, within `limits.nodes`.
4. **drain**: all nodes side by side. Without a `deadline`, as PodDisruptionBudgets allow, for `drain.timeout`; then
   `drain.whenTimeExpires` decides. With one, what a budget still holds is deleted so early that the pod's own grace
   period ends in time.
5. **remove**: NodeClaims are deleted, and instances of node groups terminated; with `remove: false` the nodes stay
   cordoned, until a person uncordons them. **publish_lost** says so if a pool has less than it promised (`gpu_restore`
   brings it back), **pods_placed** waits until the evicted pods run elsewhere, and **nothing_lost** fails if pods did
   not end before the deadline.

In clusters with pools of EC2 Capacity Blocks, a run is booked for the end of each block. **block_due** skips it if
the block was extended, and **book_next** books the next end. After the cordon, **stop_admitting** closes the NodePool,
tells the jobs, and waits for `capacityBlock.notice`.

A run that fails before its first eviction, or that a person ends, uncordons what it cordoned. After an eviction the
nodes stay cordoned, and clearing `drain` continues; the next run of the cluster takes the cordons back.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from gpu_fleet.core.drain.rules import PARAM_BARE_PODS
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.phases.common import end_run, freeze_spec, release_turn
from gpu_fleet.phases.drain import LONGEST_MIN, block_due, drained, planned
from gpu_fleet.phases.family import fleet_dag, fleet_dags
from gpu_fleet.phases.preflight import draining_preflight


def graph(spec: ClusterSpec) -> None:
    frozen = freeze_spec(spec)
    checked = draining_preflight(spec)
    due = block_due(spec)
    agreed = planned(spec)
    emptied, followed = drained(spec)

    frozen >> checked >> agreed >> emptied
    if due.tasks:
        checked >> due >> agreed
    released = release_turn([frozen, checked, due, agreed, emptied])
    end_run([frozen, checked, due, agreed, emptied, followed, released], last=[released, followed])


def build(spec: ClusterSpec) -> DAG:
    return fleet_dag(
        "gpu_drain",
        spec,
        doc=__doc__ or "",
        graph=graph,
        params={
            "nodes": Param(
                [],
                type="array",
                items={"type": "string", "minLength": 1, "maxLength": 253},
                title="Nodes",
                description="Drain these nodes: their names, or the ids of their EC2 instances. One of nodes, pools, "
                "zone and reservation is needed; of several, the nodes that are in all of them are drained.",
            ),
            "pools": Param(
                [],
                type="array",
                items={"type": "string", "enum": list(spec.pool_names)},
                examples=list(spec.pool_names),
                title="Pools",
                description="Drain the nodes of these pools.",
            ),
            "zone": Param(
                None,
                type=["null", "string"],
                maxLength=64,
                title="Availability zone",
                description="Drain the nodes in this zone, for example us-west-2a.",
            ),
            "reservation": Param(
                "",
                type="string",
                pattern="^(cr-[0-9a-z]+)?$",
                title="Capacity reservation",
                description="Drain the nodes that were launched into this capacity reservation, for example "
                "cr-0123456789abcdef0. Runs that are booked for the end of a Capacity Block name it together with "
                "`until`: then no pod refuses the drain, the jobs are told first, and the NodePool is closed.",
            ),
            "until": Param(
                None,
                type=["null", "string"],
                format="date-time",
                title="Until (UTC)",
                description="Like the deadline, as a moment: 2026-11-30T15:00:00Z.",
            ),
            "deadline": Param(
                None,
                type=["null", "integer"],
                minimum=1,
                maximum=LONGEST_MIN,
                title="Deadline (minutes)",
                description="Empty: as PodDisruptionBudgets allow, for drain.timeout; then drain.whenTimeExpires "
                "decides. A number: the nodes are empty after so many minutes; each pod gets its own grace period, and "
                "what a budget still holds is deleted in time for it.",
            ),
            "replaceFirst": Param(
                False,
                type="boolean",
                title="Replace first",
                description="Request and validate as many new nodes before the drain, within limits.nodes. Nodes of "
                "node groups are left out: their group replaces them after they have ended.",
            ),
            "remove": Param(
                True,
                type="boolean",
                title="Remove the nodes",
                description="After the drain, delete the NodeClaims and terminate the instances of node groups. false: "
                "the nodes stay cordoned, until a person uncordons them.",
            ),
            "dryRun": Param(
                False,
                type="boolean",
                title="Dry run",
                description="Only make the plan, and show it in the run's report.",
            ),
            PARAM_BARE_PODS: Param(
                False,
                type="boolean",
                title="Evict bare pods",
                description="Also evict pods without a controller, such as those of Airflow's pod operators, although "
                "nothing recreates them. Like drain.force, but for this run.",
            ),
            "askFirst": Param(
                True,
                type="boolean",
                title="Ask first",
                description="Ask for an approval if users' pods that hold GPUs are evicted. Runs that gpu_spot_drain "
                "starts do not ask: the cluster file has decided.",
            ),
            "reason": Param(
                "",
                type="string",
                maxLength=500,
                title="Reason",
                description="Why, for the report and for the person who approves.",
            ),
        },
        tags=("drain",),
    )


globals().update(fleet_dags("gpu_drain", build, __file__))
