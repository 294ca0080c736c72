"""A user's training job on the shared pool, so that the drain has users' pods to evict."""

from __future__ import annotations

import time
from typing import Any

from demo.kubectl import Kubectl

NAMESPACE = "training"
NAME = "trainer"


def manifests(pool: str, replicas: int = 2) -> list[dict[str, Any]]:
    """A Deployment of GPU pods. No PodDisruptionBudget: when all GPU nodes are removed, none could be satisfied."""
    labels = {"app": NAME}
    container = {
        "name": NAME,
        "image": "registry.k8s.io/pause:3.10",
        "resources": {"limits": {"nvidia.com/gpu": 1, "cpu": "100m", "memory": "64Mi"}},
    }
    spec = {
        "nodeSelector": {"gpu-fleet.io/pool": pool},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
    }
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": spec},
            },
        },
    ]


def create(kubectl: Kubectl, pool: str, replicas: int = 2) -> None:
    """Create the job; does not wait for it."""
    kubectl.apply(*manifests(pool, replicas))


def remove(kubectl: Kubectl) -> None:
    """Delete the job; does not wait until it is gone."""
    kubectl.run("delete", "deployment", NAME, "-n", NAMESPACE, "--ignore-not-found", "--wait=false")


def start(kubectl: Kubectl, pool: str, timeout: float = 60, replicas: int = 2) -> list[str]:
    """Apply the job and wait until its pods run.

    :returns: the nodes on which they run.
    :raises TimeoutError: names the pods that do not run.
    """
    create(kubectl, pool, replicas)
    deadline = time.monotonic() + timeout
    while True:
        pods = kubectl.get("pods", "-n", NAMESPACE)
        if pods and all(pod.get("status", {}).get("phase") == "Running" for pod in pods):
            return sorted({pod["spec"]["nodeName"] for pod in pods})
        if time.monotonic() > deadline:
            names = [f"{p['metadata']['name']} {p.get('status', {}).get('phase')}" for p in pods]
            raise TimeoutError(f"the training job does not run: {', '.join(names)}")
        time.sleep(0.5)
