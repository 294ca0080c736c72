"""The label that keeps placeholders off a node: set before the first placeholder is created, removed after the last.

A placeholder that took a node which is there already would not make Karpenter launch another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gpu_fleet.core.errors import NotFound
from gpu_fleet.core.kubernetes.kinds import NODE, ObjectRef
from gpu_fleet.core.kubernetes.names import LABEL_STANDING, STANDING

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import KubeClient


def keep_placeholders_off(kube: KubeClient, names: Iterable[str]) -> list[str]:
    """Label these nodes; returns those that were still there."""
    return [name for name in names if _label(kube, name, STANDING)]


def admit_placeholders(kube: KubeClient, selector: str) -> list[str]:
    """Remove the label from every node that the selector selects; returns their names.

    Only when no placeholder is left: a pending one could be scheduled to an idle node that was there before.
    """
    nodes = kube.list(NODE, label_selector=f"{selector},{LABEL_STANDING}")
    return [name for name in (node["metadata"]["name"] for node in nodes) if _label(kube, name, None)]


def _label(kube: KubeClient, name: str, value: str | None) -> bool:
    try:
        kube.patch(ObjectRef(NODE, name), {"metadata": {"labels": {LABEL_STANDING: value}}})
    except NotFound:
        return False
    return True
