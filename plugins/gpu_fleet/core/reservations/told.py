"""Which pods are told that their node's Capacity Block ends. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.kubernetes.names import LABEL_COMPONENT
from gpu_fleet.core.kubernetes.objects import annotations_of, deleting, finished, labels_of

#: On static pods (kubernetes.io/docs/reference/labels-annotations-taints).
_MIRROR = "kubernetes.io/config.mirror"


def is_told(pod: Mapping[str, Any]) -> bool:
    """Whether the pod may be a job: not the package's own, not a DaemonSet's or the kubelet's, and it still runs."""
    owners = (pod.get("metadata") or {}).get("ownerReferences") or []
    of_the_node = any(owner.get("kind") in ("DaemonSet", "Node") for owner in owners) or _MIRROR in annotations_of(pod)
    return not (of_the_node or LABEL_COMPONENT in labels_of(dict(pod)) or finished(pod) or deleting(dict(pod)))
