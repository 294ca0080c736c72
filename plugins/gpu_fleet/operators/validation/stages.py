"""Records where the time of a pool's nodes went: what was seen when they were chosen, and when they were proven.

Nothing here fails a task: what cannot be looked up or stored is a warning in its log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.kubernetes.objects import PoolNode, name_of
from gpu_fleet.operators.base import run_name

if TYPE_CHECKING:
    from airflow.sdk import Asset

    from gpu_fleet.core.validation.report import PoolReport
    from gpu_fleet.operators.pool import PoolOperator

#: XCom key of the task that chooses a pool's nodes: their moments so far, and the cluster's present time.
ARRIVALS = "arrivals"


def note_arrivals(
    operator: PoolOperator,
    context: Mapping[str, Any],
    nodes: Sequence[Mapping[str, Any]],
    claims: Sequence[Mapping[str, Any]],
) -> None:
    """Leave the nodes' moments in the XCom ``arrivals``. The pods that waited for them must still be there.

    :param nodes: the Nodes that the run has chosen.
    :param claims: the pool's NodeClaims.
    """
    # Here, so that a DAG file does not load what only its tasks need.
    from gpu_fleet.core.stages.arrivals import arrivals
    from gpu_fleet.hooks.cluster.launches import launch_times
    from gpu_fleet.hooks.cluster.pods import pods_on

    if not nodes:
        return
    launches: dict[str, float] = {}
    try:
        launches = launch_times(operator.spec, [PoolNode.of(node).instance_id for node in nodes])
    except GpuFleetError as error:
        operator.log.warning("EC2's launch times are not known, NodeClaims' conditions are taken: %s", error)
    try:
        pods = pods_on(operator.kube, map(name_of, nodes))
    except GpuFleetError as error:
        operator.log.warning("the stages of the nodes are not recorded: %s", error)
        return
    found = arrivals(nodes, claims, pods, launches)
    value = {"now": operator.kube.now(), "nodes": [each.to_json() for each in found]}
    context["ti"].xcom_push(ARRIVALS, value)


def record_stages(
    operator: PoolOperator,
    context: Mapping[str, Any],
    seen: Mapping[str, Any] | None,
    reports: Sequence[PoolReport],
    asset: Asset,
) -> None:
    """Complete the pool's history with this run's nodes; leaves the XCom ``stages`` for the run's report.

    :param seen: the XCom ``arrivals`` of the task that chose the nodes.
    :param asset: beside which the history is kept.
    """
    # Here, so that a DAG file does not load what only its tasks need.
    from gpu_fleet.core.pools.proofs import proven_at
    from gpu_fleet.core.stages.history import KEY, StageHistory
    from gpu_fleet.core.stages.moments import NodeTimes
    from gpu_fleet.core.stages.summary import STAGES, regressions, summary

    if not seen:
        return
    try:
        store = context["asset_state_store"][asset]
    except KeyError:
        operator.log.warning("the history of stages is not kept: Airflow offers no state store for %s", asset.uri)
        return
    run = run_name(context)
    try:
        history = StageHistory.from_json(store.get(KEY)).with_nodes(
            [NodeTimes.from_json(node) for node in seen["nodes"]], proven_at(reports), run=run, now=float(seen["now"])
        )
        store.set(KEY, history.to_json())
    except Exception:  # (a backend of the state store may raise anything, and a history is no reason to fail a run)
        operator.log.exception("the stages of pool %s are not recorded", operator.node_pool)
        return
    told = summary(operator.node_pool, history, run)
    context["ti"].xcom_push(STAGES, told)
    for node in history.of_run(run):
        words = ", ".join(
            f"{stage.words} {'unknown' if seconds is None else f'{seconds:.0f} s'}"
            for stage, seconds in node.stages().items()
        )
        operator.log.info("%s (%s): %s", node.node, node.instance_type, words)
    for slow in regressions(history, run):
        operator.log.warning("pool %s got slower: %s; nodes: %s", operator.node_pool, slow, ", ".join(slow.nodes[:10]))
