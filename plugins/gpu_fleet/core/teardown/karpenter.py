"""Whether Karpenter can do its part of a teardown: whether it is alive, its version, and the way that follows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from gpu_fleet.core.kubernetes.objects import deleting, is_true
from gpu_fleet.core.spec import version_tuple


class Karpenter(StrEnum):
    """Whether a controller runs that serves finalizers."""

    ALIVE = "Alive"
    DEAD = "Dead"


def karpenter_state(pods: Iterable[Mapping[str, Any]]) -> Karpenter:
    """ALIVE if at least one of the controller's pods is Ready and not terminating."""
    for pod in pods:
        if not deleting(pod) and is_true(pod, "Ready"):
            return Karpenter.ALIVE
    return Karpenter.DEAD


def karpenter_versions(deployments: Iterable[Mapping[str, Any]]) -> list[str]:
    """The versions of the Deployments of Karpenter's controller, the oldest first; those without one are left out.

    The chart sets it as a label (``app.kubernetes.io/version``); else it is the tag of Karpenter's own image.
    """
    found = []
    for item in deployments:
        pod = (((item.get("spec") or {}).get("template") or {}).get("spec")) or {}
        images = " ".join(str(container.get("image")) for container in pod.get("containers") or [])
        label = str((item["metadata"].get("labels") or {}).get("app.kubernetes.io/version", ""))
        if version := re.match(r"v?([0-9]+\.[0-9.]+)", label) or re.search(r"karpenter/controller:v?([0-9.]+)", images):
            found.append(version[1])
    return sorted(found, key=version_tuple)


class Way(StrEnum):
    """How the NodePools can be removed."""

    NOTHING_LEFT = "NothingLeft"
    BY_KARPENTER = "ByKarpenter"
    EMERGENCY = "Emergency"
    REFUSED = "Refused"


def choose_way(*, karpenter: Karpenter, something_left: bool, policy: str) -> Way:
    """Decide from what was observed.

    :param something_left: a NodePool, NodeClaim or instance of ours exists.
    :param policy: ``teardown.whenKarpenterIsDead`` of the spec, ``fail`` or ``emergency``.
    :raises ValueError: for an unknown policy.
    """
    if not something_left:
        return Way.NOTHING_LEFT
    if karpenter is Karpenter.ALIVE:
        return Way.BY_KARPENTER
    if policy == "emergency":
        return Way.EMERGENCY
    if policy == "fail":
        return Way.REFUSED
    raise ValueError(f"unknown policy {policy!r} for a dead Karpenter")
