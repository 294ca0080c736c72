"""The fleet's own releases (Karpenter's CRDs, Karpenter, the device plugin): install, prove, remediate, uninstall."""

from __future__ import annotations

from gpu_fleet.operators.helm.releases.install import InstallReleaseOperator
from gpu_fleet.operators.helm.releases.prove import SEEN_UNHEALTHY, ProveReleaseOperator
from gpu_fleet.operators.helm.releases.remediate import RESTORING, RemediateReleaseOperator
from gpu_fleet.operators.helm.releases.uninstall import UninstallReleaseOperator

__all__ = [
    "RESTORING",
    "SEEN_UNHEALTHY",
    "InstallReleaseOperator",
    "ProveReleaseOperator",
    "RemediateReleaseOperator",
    "UninstallReleaseOperator",
]
