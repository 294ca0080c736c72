"""When a run has to look at a node of a gated pool that Karpenter has added for users' pods. Pure.

While a run holds the cluster lock no other one is started: a lifecycle proves the nodes that it brings, and looks at
whatever else has joined by then. A node that is still closed when half of its time box is over gets its run in spite of
the lock, because the holder may be a run that is over, which only a worker can find out. At the end of the box a run
applies the policy.
"""

from __future__ import annotations

from collections.abc import Collection

from gpu_fleet.core.admission.mark import Proven, is_kept_closed, is_unproven, proof_of
from gpu_fleet.core.kubernetes.names import ANNOTATION_PROTECTED_BY, LABEL_NODE_POOL
from gpu_fleet.core.kubernetes.objects import Object, PoolNode, annotations_of, created_at, labels_of


def due_at(node: Object, pools: Collection[str], box_s: float, *, locked: bool, now: float) -> float | None:
    """Epoch seconds, by the API server's clock, at which a run has to look at a node; ``None``: there is no need.

    There is none for a node that takes pods already, is being proven or removed, or has its verdict: a validation will
    judge it again.

    :param pools: the names of the gated pools.
    :param box_s: ``validation.admitWithin`` in seconds.
    :param locked: whether a run holds the cluster lock.
    :param now: epoch seconds by the same clock.
    """
    seen = PoolNode.of(node)
    if labels_of(node).get(LABEL_NODE_POOL) not in pools or not is_unproven(node) or seen.leaving:
        return None
    found = proof_of(node)
    if is_kept_closed(node) or ANNOTATION_PROTECTED_BY in annotations_of(node):
        return None
    if found is not None and found.status is Proven.YES:
        return now  # A run was interrupted before it could open the node.
    born = created_at(node) or now
    if not (seen.usable and not seen.cordoned):
        return born + box_s
    return born + box_s / 2 if locked else now
