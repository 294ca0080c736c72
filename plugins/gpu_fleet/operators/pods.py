"""Pods of this package: creating one, finding placeholders, deleting some."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import AlreadyExists, Forbidden
from gpu_fleet.core.kubernetes.kinds import JOB, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import (
    COMPONENT_HEADROOM,
    COMPONENT_PLACEHOLDER,
    LABEL_COMPONENT,
    LABEL_POOL,
    SYSTEM_NAMESPACE,
)

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import KubeClient

#: Attempts to create a pod, and the pause between them in seconds, while its new namespace has no ServiceAccount yet;
#: the controller needs well under a second.
YOUNG_NAMESPACE_TRIES, YOUNG_NAMESPACE_PAUSE_S = 40, 0.25


def create_pod(kube: KubeClient, manifest: dict[str, Any]) -> bool:
    """Create a pod; ``False`` if it exists.

    :raises Forbidden: quota, admission, a missing RuntimeClass or PriorityClass.
    """
    for attempt in range(YOUNG_NAMESPACE_TRIES):
        try:
            kube.create(manifest)
        except AlreadyExists:
            return False
        except Forbidden as error:
            young = "serviceaccount" in error.message.lower() and "not found" in error.message
            if not young or attempt == YOUNG_NAMESPACE_TRIES - 1:
                raise
            time.sleep(YOUNG_NAMESPACE_PAUSE_S)
        else:
            return True
    raise AssertionError("unreachable")


def placeholders(kube: KubeClient, pool: str, component: str = COMPONENT_PLACEHOLDER) -> list[dict[str, Any]]:
    """The pool's placeholder pods."""
    selector = f"{LABEL_COMPONENT}={component},{LABEL_POOL}={pool}"
    return kube.list(POD, SYSTEM_NAMESPACE, label_selector=selector)


def delete_job(kube: KubeClient, name: str) -> bool:
    """Request the deletion of a Job of ours with its pods; ``False`` if it was absent."""
    return kube.delete(ObjectRef(JOB, name, SYSTEM_NAMESPACE))


def end_headroom(kube: KubeClient, pods: list[dict[str, Any]]) -> list[str]:
    """Delete these placeholders of headroom with their Jobs; returns the names of the pods that existed.

    The Jobs first, or they would count the pods as failed: then no later task would create them anew.
    """
    owners = {owner["name"] for pod in pods for owner in pod["metadata"].get("ownerReferences") or []}
    for name in sorted(owners):
        if name.startswith(f"{COMPONENT_HEADROOM}-"):
            delete_job(kube, name)
    return delete_pods(kube, pods)


def delete_pods(kube: KubeClient, pods: list[dict[str, Any]]) -> list[str]:
    """Request the deletion of exactly these pods; returns the names of those that existed."""
    deleted = []
    for pod in pods:
        metadata = pod["metadata"]
        ref = ObjectRef(POD, metadata["name"], metadata["namespace"])
        if kube.delete(ref, grace_seconds=1):
            deleted.append(metadata["name"])
    return deleted
