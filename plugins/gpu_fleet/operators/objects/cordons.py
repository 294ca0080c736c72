"""Taking back cordons that a drain of ours made and did not go on with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import NotFound
from gpu_fleet.core.kubernetes.kinds import NODE, ObjectRef
from gpu_fleet.core.kubernetes.names import ANNOTATION_CORDONED_BY, ANNOTATION_QUARANTINED

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import KubeClient


def take_back_cordons(kube: KubeClient, nodes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Uncordon the nodes that a drain of ours cordoned and did not finish; a cordon by others stays.

    :returns: the nodes as they are afterwards, without those that have gone.
    """
    now = []
    for node in nodes:
        metadata = node["metadata"]
        if ANNOTATION_CORDONED_BY not in (metadata.get("annotations") or {}) or metadata.get("deletionTimestamp"):
            now.append(node)
            continue
        body: dict[str, Any] = {"metadata": {"annotations": {ANNOTATION_CORDONED_BY: None}}}
        if ANNOTATION_QUARANTINED not in metadata["annotations"]:
            body["spec"] = {"unschedulable": None}
        try:
            now.append(kube.patch(ObjectRef(NODE, metadata["name"]), body))
        except NotFound:
            continue
    return now


def take_back_own_cordons(kube: KubeClient, nodes: Iterable[dict[str, Any]]) -> list[str]:
    """Uncordon the nodes that any run of ours cordoned, also one that is dead; returns their names."""
    mine = [
        node
        for node in nodes
        if ANNOTATION_CORDONED_BY in (node["metadata"].get("annotations") or {})
        and not node["metadata"].get("deletionTimestamp")
    ]
    return sorted(node["metadata"]["name"] for node in take_back_cordons(kube, mine))
