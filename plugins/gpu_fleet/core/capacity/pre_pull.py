"""Pods that make nodes pull images before jobs need them. Pure.

A pod names an image and a command that no image has. So the kubelet pulls the image and creates the container, and the
container runtime cannot start it (reason ``StartError``): nothing of the image is ever run, and nothing has to be in
it. The pod ends with phase Failed, which is what is expected of it. It asks for no GPU, is pinned to its node, so that
Karpenter buys nothing for it, and ends by itself.

How long the pull took is in the kubelet's event (kubernetes v1.36 pkg/kubelet/images/image_manager.go): ``Successfully
pulled image "X" in 38.1s (1m2s including waiting)``; the first figure is the pull alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.capacity.placeholders import container_security, pod_security, tolerations
from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_RUN,
    COMPONENT_PRE_PULL,
    LABEL_CLUSTER,
    LABEL_COMPONENT,
    LABEL_HOSTNAME,
    LABEL_POOL,
    LABEL_RUN,
    PLACEHOLDER_PRIORITY_CLASS,
    SYSTEM_NAMESPACE,
    short_hash,
)
from gpu_fleet.core.kubernetes.objects import Object, name_of

if TYPE_CHECKING:
    from gpu_fleet.core.spec import NodePool

#: No image has it.
COMMAND = "/gpu-fleet/pull-only"
_PULLED = re.compile(r'Successfully pulled image "(?P<image>[^"]+)" in (?P<took>[0-9.hmsµu]+)')
_PRESENT = "already present on machine"
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


def pre_pull_selector(pool: str) -> str:
    return f"{LABEL_COMPONENT}={COMPONENT_PRE_PULL},{LABEL_POOL}={pool}"


def pre_pull_name(pool: str, node: str, image: str) -> str:
    """The same for every try and every run, so that a second one finds the pod of the first."""
    return f"pre-pull-{pool[:40].rstrip('-')}-{short_hash(pool, node, image)}"


def pre_pull_pod(
    cluster: str, pool: NodePool, node: str, image: str, *, lifetime_s: int, run: str, run_label: str
) -> Object:
    """The pod that makes a node pull an image."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pre_pull_name(pool.name, node, image),
            "namespace": SYSTEM_NAMESPACE,
            "labels": {
                LABEL_CLUSTER: cluster,
                LABEL_POOL: pool.name,
                LABEL_COMPONENT: COMPONENT_PRE_PULL,
                LABEL_RUN: run_label,
            },
            "annotations": {ANNOTATION_RUN: run},
        },
        "spec": {
            "nodeSelector": {LABEL_HOSTNAME: node},
            "priorityClassName": PLACEHOLDER_PRIORITY_CLASS,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": lifetime_s,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "tolerations": tolerations(pool),
            "securityContext": pod_security(),
            "containers": [
                {
                    "name": "pull",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": [COMMAND],
                    # AL2023's runtime gives GPUs to every image that asks for them by this variable.
                    "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}],
                    "securityContext": container_security(),
                    "resources": {"requests": {"cpu": "1m", "memory": "8Mi"}, "limits": {"memory": "16Mi"}},
                }
            ],
        },
    }


def image_of(pod: Object) -> str:
    return str(pod["spec"]["containers"][0]["image"])


def is_pulled(pod: Object) -> bool:
    """Whether the node has the image: the kubelet knows its id, which it does once the container is created."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return any(status.get("imageID") for status in statuses)


def waiting_of(pod: Object) -> tuple[str, str]:
    """Reason and message of a container that waits; empty if none does."""
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting:
            return str(waiting.get("reason", "")), str(waiting.get("message", ""))
    return "", ""


def seconds_of(pod: Object, events: Iterable[Object]) -> float | None:
    """How long the pull took: 0 if the node had the image; ``None`` if no event says it."""
    for event in events:
        involved = event.get("involvedObject") or {}
        if involved.get("name") != name_of(pod) or event.get("reason") != "Pulled":
            continue
        message = str(event.get("message", ""))
        if found := _PULLED.search(message):
            return go_seconds(found["took"])
        if _PRESENT in message:
            return 0.0
    return None


def go_seconds(text: str) -> float:
    """A duration as Go writes it: ``1m2.5s``."""
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9.]+)(h|ms|us|µs|m|s)", text))


def measured(pods: Sequence[Object], events: Sequence[Object]) -> dict[str, dict[str, Any]]:
    """Node -> image -> seconds of its pull."""
    found: dict[str, dict[str, Any]] = {}
    for pod in pods:
        node = str((pod["spec"].get("nodeSelector") or {}).get(LABEL_HOSTNAME, ""))
        if is_pulled(pod):
            found.setdefault(node, {})[image_of(pod)] = seconds_of(pod, events)
    return {node: found[node] for node in sorted(found)}
