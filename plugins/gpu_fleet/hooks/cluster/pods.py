"""The pods that matter, in a cluster that may have tens of thousands: requested by node, or filtered page by page.

API servers find the pods of a node by an index (kubernetes v1.36 ``pkg/registry/core/pod/strategy.go``, ``Indexers``:
``spec.nodeName``); those that have no node yet are under the empty name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gpu_fleet.core.kubernetes.kinds import POD
from gpu_fleet.hooks.kubernetes.client import KubeClient

Pod = dict[str, Any]


def pods_on(kube: KubeClient, nodes: Iterable[str]) -> list[Pod]:
    """The pods on these nodes, finished ones too, and those that are nominated to them.

    :param nodes: names; empty ones are passed over.
    """
    wanted = {name for name in nodes if name}
    if not wanted:
        return []
    # Unscheduled pods first: a pod that is bound meanwhile is then seen twice rather than never.
    coming = unbound_pods(kube, lambda pod: (pod.get("status") or {}).get("nominatedNodeName") in wanted)
    found = {pod["metadata"]["uid"]: pod for pod in coming}
    for name in sorted(wanted):
        for pod in kube.list(POD, field_selector=f"spec.nodeName={name}"):
            found[pod["metadata"]["uid"]] = pod
    return list(found.values())


def unbound_pods(kube: KubeClient, keep: Callable[[Pod], bool]) -> list[Pod]:
    """The pods that are on no node yet.

    :param keep: which of them matter; the others are dropped as they arrive.
    """
    return kube.list(POD, field_selector="spec.nodeName=", keep=keep)
