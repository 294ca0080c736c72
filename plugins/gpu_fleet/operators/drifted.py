"""Reports the nodes of pools that have drifted in a task's XCom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.nodes.drifted import DriftedNode
from gpu_fleet.operators.base import FleetOperator

#: XCom key of the nodes that have drifted.
DRIFTED = "drifted"
#: Most nodes that the XCom lists.
MOST_NODES = 200


def as_data(drifted: list[DriftedNode]) -> list[dict[str, Any]]:
    """For XComs and asset events, bounded."""
    return [node.to_json() for node in drifted[:MOST_NODES]]


def note_drifted(operator: FleetOperator, context: Mapping[str, Any], pool: str) -> None:
    """Leave a pool's drifted nodes, as they are now, in the task's XCom ``drifted``.

    A failure to read them is logged and does not fail the task, which is about something else; the drift check reports
    it.
    """
    from gpu_fleet.hooks.cluster.drifted import look_at_nodes

    if not operator.spec.pool(pool).manage:
        return
    try:
        drifted = look_at_nodes(operator.kube, [pool]).drifted()
    except GpuFleetError as error:
        operator.log.warning("could not find out which nodes of pool %s have drifted: %s", pool, error.message)
        return
    for node in drifted:
        operator.log.warning("%s", node)
    context["ti"].xcom_push(DRIFTED, as_data(drifted))
