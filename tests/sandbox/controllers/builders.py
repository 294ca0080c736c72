"""Objects for the controllers' tests."""

from __future__ import annotations

import itertools
from typing import Any

Object = dict[str, Any]
_numbers = itertools.count(1)


def node(name: str = "n1", *, gpus: int | None = None, ready: bool = True, **fields: Any) -> Object:
    allocatable = {"cpu": "4", "memory": "16Gi", "pods": "58"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name} | fields.get("labels", {})},
        "spec": {key: fields[key] for key in ("taints", "unschedulable") if key in fields},
        "status": {
            "allocatable": allocatable | fields.get("allocatable", {}),
            "capacity": allocatable,
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True" if ready else "False",
                    "reason": "KubeletReady" if ready else "KubeletNotReady",
                    "message": "kubelet is posting ready status",
                    "lastHeartbeatTime": "2026-01-01T00:00:00Z",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }
            ],
        },
    }


def template(
    labels: dict[str, str] | None = None, *, image: str = "pause:1", gpus: int = 0, cpu: str = "", **spec: Any
) -> Object:
    resources: Object = {}
    if gpus:
        resources = {"limits": {"nvidia.com/gpu": str(gpus)}, "requests": {"nvidia.com/gpu": str(gpus)}}
    if cpu:
        resources.setdefault("requests", {})["cpu"] = cpu
    container = {"name": "main", "image": image} | ({"resources": resources} if resources else {})
    return {"metadata": {"labels": labels or {"app": "x"}}, "spec": {"containers": [container], **spec}}


def pod(name: str = "p", namespace: str = "default", labels: dict[str, str] | None = None, **fields: Any) -> Object:
    body = template(labels, **fields)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, **body["metadata"]},
        "spec": body["spec"],
    }


def seen(obj: Object) -> Object:
    """The object as a cache holds it, for tests without a server."""
    number = next(_numbers)
    obj["metadata"] |= {
        "uid": f"uid-{number}",
        "resourceVersion": str(number),
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return obj


def workload(kind: str, name: str = "w", namespace: str = "default", **spec: Any) -> Object:
    labels = {"app": name}
    pods = spec.pop("template", None) or template(labels)
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": pods, **spec},
    }


def job(name: str = "j", namespace: str = "default", **spec: Any) -> Object:
    pods = spec.pop("template", None) or template(
        {"job": name}, restartPolicy="Never", image=spec.pop("image", "succeed")
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"template": pods, **spec},
    }


def budget(name: str = "b", namespace: str = "default", labels: dict[str, str] | None = None, **spec: Any) -> Object:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": labels or {"app": "w"}}, **spec},
    }


def plain(kind: str, name: str, namespace: str | None = "default", api_version: str = "v1", **fields: Any) -> Object:
    metadata: Object = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata | fields.pop("metadata", {}), **fields}
