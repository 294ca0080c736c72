"""What a new object gets from the server: its uid, its first status, a Job's selector (kubernetes pkg/registry)."""

from __future__ import annotations

import itertools
from typing import Any

from sandbox.apiserver import quantities
from sandbox.apiserver.jsontools import Obj, random_hex
from sandbox.apiserver.resources import Resource

_JOB_SELECTOR = "batch.kubernetes.io/controller-uid"
# Statuses that are complete from the start: models of the Python clients require these integers.
_DAEMON_SET_STATUS = ("currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady")


def new_uid() -> str:
    text = random_hex(32)
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def initial_status(resource: Resource, obj: Obj) -> None:
    """The status a new object starts with; what the client sent as status is dropped."""
    if resource.status and resource.kind not in ("Node", "CustomResourceDefinition"):
        # kubelets register with a status; everything else starts without one
        obj.pop("status", None)
    match resource.kind:
        case "Pod":
            obj["status"] = {"phase": "Pending", "qosClass": qos_class(obj["spec"])}
        case "DaemonSet":
            obj["status"] = dict.fromkeys(_DAEMON_SET_STATUS, 0)
        case "Deployment" | "Job" | "ResourceQuota" | "CronJob":
            obj["status"] = {}
        case "ReplicaSet" | "ReplicationController":
            obj["status"] = {"replicas": 0}
        case "StatefulSet":
            obj["status"] = {"availableReplicas": 0, "replicas": 0}
        case "PodDisruptionBudget":
            obj["status"] = {"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}
        case "Namespace":
            obj["status"] = {"phase": "Active"}
        case "Service":
            obj["status"] = {"loadBalancer": {}}
        case "PersistentVolumeClaim":
            obj["status"] = {"phase": "Pending"}


def qos_class(spec: Obj) -> str:
    """Guaranteed, Burstable or BestEffort (pkg/apis/core/v1/helper/qos)."""
    guaranteed, any_set = True, False
    for container in itertools.chain(spec.get("containers") or [], spec.get("initContainers") or []):
        resources: dict[str, Any] = container.get("resources") or {}
        requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
        for name in ("cpu", "memory"):
            any_set = any_set or name in requests or name in limits
            if name not in limits or quantities.parse(requests.get(name, limits[name])) != quantities.parse(
                limits[name]
            ):
                guaranteed = False
    if not any_set:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def generate_job_selector(obj: Obj) -> None:
    """A Job's selector and template labels, made from its uid (pkg/registry/batch/job/strategy.go)."""
    spec, uid, name = obj["spec"], obj["metadata"]["uid"], obj["metadata"]["name"]
    if spec.get("manualSelector"):
        return
    labels = spec.setdefault("template", {}).setdefault("metadata", {}).setdefault("labels", {})
    labels.update(
        {
            "batch.kubernetes.io/controller-uid": uid,
            "batch.kubernetes.io/job-name": name,
            "controller-uid": uid,
            "job-name": name,
        }
    )
    spec.setdefault("selector", {}).setdefault("matchLabels", {})[_JOB_SELECTOR] = uid
