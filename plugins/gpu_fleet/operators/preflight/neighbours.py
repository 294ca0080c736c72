"""Refuses, before anything is changed, a cluster on which other components conflict with the spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import NeighbourConflict
from gpu_fleet.operators.base import FleetOperator

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec

#: How many conflicts an error message describes in full.
SHOWN = 3


class CheckNeighboursOperator(FleetOperator):
    """Looks for device plugins of others that reach the pools' nodes, and fails if it finds any.

    It looks at DaemonSets with a device plugin or with the kubelet's device-plugin folder, at the resources that make
    NVIDIA's GPU Operator run one, and at EKS Auto Mode. With ``devicePlugin.manage: false`` the reverse is required:
    exactly one plugin reaches each pool, and its config matches what the pool promises.

    :returns: ``{"neighbours": [{"object", "what", "pools", "conflicts"}]}``.
    :raises NeighbourConflict: with every object, the pools that it reaches, and the remedies; nothing has been changed.
    """

    ui_color = "#eef2f7"

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.device_plugin.neighbours import survey
        from gpu_fleet.hooks.cluster.neighbours import look_at_neighbours

        found = survey(self.spec, look_at_neighbours(self.kube, self.spec, auto_mode=runs_auto_mode(self.spec)))
        for item in found.neighbours:
            self.log.info("%s", item)
        for conflict in found.conflicts:
            self.log.error("%s: %s", conflict.reason, conflict.message)
        if found.conflicts:
            first = found.conflicts[0]
            told = "; ".join(item.message for item in found.conflicts[:SHOWN])
            more = f"; and {len(found.conflicts) - SHOWN} more" if len(found.conflicts) > SHOWN else ""
            raise NeighbourConflict(f"nothing has been changed: {told}{more}", reason=first.reason)
        return {"neighbours": [item.to_json() for item in found.neighbours]}


def runs_auto_mode(spec: ClusterSpec) -> bool:
    """``computeConfig.enabled`` of the EKS cluster (Amazon EKS API, type ComputeConfigResponse)."""
    from gpu_fleet.hooks.aws import aws_session

    aws = aws_session(spec.aws.connection, spec.aws.region)
    cluster = aws.call("eks", "describe_cluster", name=spec.cluster.name)["cluster"]
    return bool((cluster.get("computeConfig") or {}).get("enabled"))
