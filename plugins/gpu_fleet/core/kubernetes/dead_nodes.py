"""Nodes whose kubelet does not answer: it terminates no pod and reports none as terminated. Pure.

Karpenter passes over a pod that is a minute past its grace period and terminates the instance, with which everything on
it ends (kubernetes-sigs/karpenter v1.14.1 pkg/utils/pod/scheduling.go ``IsStuckTerminating``); kubectl has
``--skip-wait-for-delete-timeout`` for the same (kubernetes/kubectl v0.36 pkg/drain/filters.go ``skipDeletedFilter``). A
drain that waits for such a pod waits for what only the deletion of the NodePool, its next step, brings about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_fleet.core.kubernetes.objects import PoolNode, condition, deleting, epoch, node_of

#: Seconds past its deletionTimestamp, which is its grace period's end, after which a pod is passed over.
STUCK_AFTER_S = 60.0
#: A pod's grace period where it names none (core/v1 ``terminationGracePeriodSeconds``).
DEFAULT_GRACE_S = 30.0


def dead_nodes(nodes: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The nodes that are not Ready, and why. Without those whose kubelet has never reported: they are joining."""
    views = (PoolNode.of(node) for node in nodes if condition(node, "Ready") is not None)
    return {view.name: view.not_ready for view in views if not view.ready}


def passed_over_at(pod: Mapping[str, Any], now: float, grace_s: float | None = None) -> float:
    """When a pod on such a node is passed over, as epoch seconds of the cluster's clock; of one that is not deleted
    yet: if it is deleted now.

    :param grace_s: with which it is deleted; ``None``: its own.
    """
    ends = epoch((pod.get("metadata") or {}).get("deletionTimestamp"))
    if ends is None:
        own = (pod.get("spec") or {}).get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)
        ends = now + float(own if grace_s is None else grace_s)
    return ends + STUCK_AFTER_S


def is_passed_over(pod: Mapping[str, Any], dead: Mapping[str, str], now: float | None) -> bool:
    """Whether a pod is on a node that is not Ready, was deleted, and is past its grace period.

    :param dead: see :func:`dead_nodes`.
    :param now: epoch seconds; ``None``: not known, so no pod is passed over.
    """
    return deleting(pod) and node_of(pod) in dead and now is not None and passed_over_at(pod, now) < now
