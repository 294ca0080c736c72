"""Managed node groups as EKS describes them: the fields that moto lacks.

A group is CREATING until its nodes have joined, or EKS gives that up and lists the issue (docs.aws.amazon.com/eks,
'Managed node groups' and API type Nodegroup). Here that takes as long as a node takes, counted from its creation;
groups that moto was given directly, the cluster's own, have been there long before.

The fault ``eks-nodegroup`` with ``{"name", "status", "issues": [{"code", "message"}]}`` overrides this for one group.
"""

from __future__ import annotations

from typing import Any

from sandbox.faults import FaultBoard

JsonObject = dict[str, Any]
FAULT = "eks-nodegroup"


class NodeGroups:
    """Since when the groups that were created here are ACTIVE, by cluster and name; wall-clock seconds."""

    def __init__(self, faults: FaultBoard) -> None:
        self._faults = faults
        self._active_at: dict[tuple[str, str], float] = {}

    def created(self, cluster: str, name: str, active_at: float) -> None:
        self._active_at[cluster, name] = active_at

    def dress(self, group: JsonObject, now: float) -> JsonObject:
        """A node group as moto describes it → as EKS does."""
        dressed = dict(group)
        if now < self._active_at.get((group["clusterName"], group["nodegroupName"]), 0.0):
            dressed["status"] = "CREATING"
        for fault in self._faults.each(FAULT):
            if fault.get("name") == group["nodegroupName"]:
                dressed["status"] = str(fault["status"])
                dressed["health"] = {"issues": list(fault.get("issues") or [])}
        return dressed
