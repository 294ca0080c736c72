"""Columns of ``kubectl get`` (kubernetes pkg/printers/internalversion/printers.go), custom resources by their CRD."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Any

from sandbox.apiserver.jsontools import Obj, dig, parse_time
from sandbox.apiserver.resources import Resource

_NONE = "<none>"
Cell = Callable[[Obj], Any]


def age(stamp: Any) -> str:
    """``5m``, ``2d3h``: how long ago, as apimachinery pkg/util/duration writes it."""
    if not isinstance(stamp, str):
        return "<unknown>"
    seconds = max(0, int((dt.datetime.now(dt.UTC) - parse_time(stamp)).total_seconds()))
    if seconds < 120:
        return f"{seconds}s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    return f"{days}d" if days >= 8 or not hours % 24 else f"{days}d{hours % 24}h"


def _age(obj: Obj) -> str:
    return age(dig(obj, "metadata", "creationTimestamp"))


def _name(obj: Obj) -> Any:
    return dig(obj, "metadata", "name")


def _at(*path: str, default: Any = _NONE) -> Cell:
    def cell(obj: Obj) -> Any:
        found = dig(obj, *path)
        return default if found in (None, "") else found

    return cell


def _count(*path: str) -> Cell:
    return lambda obj: len(dig(obj, *path) or ())


def _pod_ready(obj: Obj) -> str:
    statuses = dig(obj, "status", "containerStatuses") or []
    return f"{sum(1 for item in statuses if item.get('ready'))}/{len(dig(obj, 'spec', 'containers') or [])}"


def _pod_status(obj: Obj) -> str:
    text = dig(obj, "status", "reason") or dig(obj, "status", "phase") or "Unknown"
    for status in dig(obj, "status", "containerStatuses") or []:
        state = status.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        if waiting.get("reason"):
            text = waiting["reason"]
        elif ended:
            text = ended.get("reason") or f"ExitCode:{ended.get('exitCode', 0)}"
    return "Terminating" if dig(obj, "metadata", "deletionTimestamp") else text


def _pod_restarts(obj: Obj) -> int:
    return sum(item.get("restartCount", 0) for item in dig(obj, "status", "containerStatuses") or [])


def _node_status(obj: Obj) -> str:
    ready = [item for item in dig(obj, "status", "conditions") or [] if item.get("type") == "Ready"]
    text = "Unknown" if not ready else "Ready" if ready[0].get("status") == "True" else "NotReady"
    return text + (",SchedulingDisabled" if dig(obj, "spec", "unschedulable") else "")


def _node_roles(obj: Obj) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = dig(obj, "metadata", "labels") or {}
    return ",".join(sorted(key.removeprefix(prefix) for key in labels if key.startswith(prefix))) or _NONE


def _selector(*path: str) -> Cell:
    def cell(obj: Obj) -> str:
        labels = dig(obj, *path) or {}
        return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or _NONE

    return cell


def _ready_of(*total: str) -> Cell:
    return lambda obj: f"{dig(obj, 'status', 'readyReplicas') or 0}/{dig(obj, *total) or 0}"


def _data_count(obj: Obj) -> int:
    return len(obj.get("data") or {}) + len(obj.get("binaryData") or {})


def _job_status(obj: Obj) -> str:
    for condition in dig(obj, "status", "conditions") or []:
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed", "Suspended"):
            return str(condition["type"])
    return "Running"


def _ports(obj: Obj) -> str:
    ports = dig(obj, "spec", "ports") or []
    return ",".join(f"{port.get('port')}/{port.get('protocol', 'TCP')}" for port in ports) or _NONE


def _last_seen(obj: Obj) -> str:
    return age(obj.get("lastTimestamp") or obj.get("eventTime") or dig(obj, "metadata", "creationTimestamp"))


def _involved(obj: Obj) -> str:
    involved = obj.get("involvedObject") or {}
    return f"{str(involved.get('kind', '')).lower()}/{involved.get('name', '')}"


_NAME: tuple[str, str, Cell] = ("Name", "string", _name)
_AGE: tuple[str, str, Cell] = ("Age", "string", _age)

_COLUMNS: dict[str, tuple[tuple[str, str, Cell], ...]] = {
    "Pod": (
        _NAME,
        ("Ready", "string", _pod_ready),
        ("Status", "string", _pod_status),
        ("Restarts", "string", _pod_restarts),
        _AGE,
        ("IP", "string", _at("status", "podIP")),
        ("Node", "string", _at("spec", "nodeName")),
        ("Nominated Node", "string", _at("status", "nominatedNodeName")),
        ("Readiness Gates", "string", lambda _: _NONE),
    ),
    "Node": (
        _NAME,
        ("Status", "string", _node_status),
        ("Roles", "string", _node_roles),
        _AGE,
        ("Version", "string", _at("status", "nodeInfo", "kubeletVersion", default="")),
    ),
    "DaemonSet": (
        _NAME,
        ("Desired", "integer", _at("status", "desiredNumberScheduled", default=0)),
        ("Current", "integer", _at("status", "currentNumberScheduled", default=0)),
        ("Ready", "integer", _at("status", "numberReady", default=0)),
        ("Up-to-date", "integer", _at("status", "updatedNumberScheduled", default=0)),
        ("Available", "integer", _at("status", "numberAvailable", default=0)),
        ("Node Selector", "string", _selector("spec", "template", "spec", "nodeSelector")),
        _AGE,
    ),
    "Deployment": (
        _NAME,
        ("Ready", "string", _ready_of("spec", "replicas")),
        ("Up-to-date", "integer", _at("status", "updatedReplicas", default=0)),
        ("Available", "integer", _at("status", "availableReplicas", default=0)),
        _AGE,
    ),
    "ReplicaSet": (
        _NAME,
        ("Desired", "integer", _at("spec", "replicas", default=0)),
        ("Current", "integer", _at("status", "replicas", default=0)),
        ("Ready", "integer", _at("status", "readyReplicas", default=0)),
        _AGE,
    ),
    "StatefulSet": (_NAME, ("Ready", "string", _ready_of("spec", "replicas")), _AGE),
    "Job": (
        _NAME,
        ("Status", "string", _job_status),
        (
            "Completions",
            "string",
            lambda obj: f"{dig(obj, 'status', 'succeeded') or 0}/{dig(obj, 'spec', 'completions') or 1}",
        ),
        _AGE,
    ),
    "Service": (
        _NAME,
        ("Type", "string", _at("spec", "type")),
        ("Cluster-IP", "string", _at("spec", "clusterIP")),
        ("Port(s)", "string", _ports),
        _AGE,
    ),
    "Namespace": (_NAME, ("Status", "string", _at("status", "phase", default="")), _AGE),
    "ConfigMap": (_NAME, ("Data", "integer", _data_count), _AGE),
    "Secret": (_NAME, ("Type", "string", _at("type", default="")), ("Data", "integer", _count("data")), _AGE),
    "Event": (
        ("Last Seen", "string", _last_seen),
        ("Type", "string", _at("type", default="")),
        ("Reason", "string", _at("reason", default="")),
        ("Object", "string", _involved),
        ("Message", "string", _at("message", default="")),
    ),
    "PodDisruptionBudget": (
        _NAME,
        ("Min Available", "string", _at("spec", "minAvailable", default="N/A")),
        ("Max Unavailable", "string", _at("spec", "maxUnavailable", default="N/A")),
        ("Allowed Disruptions", "integer", _at("status", "disruptionsAllowed", default=0)),
        _AGE,
    ),
    "RuntimeClass": (_NAME, ("Handler", "string", _at("handler", default="")), _AGE),
    "PriorityClass": (
        _NAME,
        ("Value", "integer", _at("value", default=0)),
        ("Global-Default", "boolean", _at("globalDefault", default=False)),
        _AGE,
        ("PreemptionPolicy", "string", _at("preemptionPolicy", default="")),
    ),
    "Lease": (_NAME, ("Holder", "string", _at("spec", "holderIdentity", default="")), _AGE),
    "CustomResourceDefinition": (_NAME, ("Created At", "date", _at("metadata", "creationTimestamp"))),
}  # fmt: skip

_WIDE = frozenset({"IP", "Node", "Nominated Node", "Readiness Gates"})


def _definition(name: str, kind: str, priority: int = 0) -> Obj:
    shape = "name" if name == "Name" else ""
    return {"name": name, "type": kind, "format": shape, "description": "", "priority": priority}


def columns(resource: Resource) -> list[Obj]:
    if resource.custom:
        own = [
            _definition(item["name"], item["type"], item.get("priority", 0))
            for item in resource.columns
            if "name" in item
        ]
        return [_definition("Name", "string"), *(own or [_definition("Age", "string")])]
    known = _COLUMNS.get(resource.kind, (_NAME, _AGE))
    return [_definition(name, kind, 1 if name in _WIDE else 0) for name, kind, _ in known]


def cells(resource: Resource, obj: Obj) -> list[Any]:
    if resource.custom:
        own = [_column_value(item, obj) for item in resource.columns if "name" in item]
        return [_name(obj), *(own or [_age(obj)])]
    return [cell(obj) for _, _, cell in _COLUMNS.get(resource.kind, (_NAME, _AGE))]


_STEP = re.compile(r"""\.((?:\\.|[^.\[\\])+)|\[\?\(@\.(\w+)\s*==\s*["']([^"']*)["']\)\]|\['([^']+)'\]|\[(\d+)\]""")


def _column_value(column: Obj, obj: Obj) -> Any:
    """The subset of JSONPath that CRDs use: members, escaped dots, ``[?(@.type=="Ready")]``."""
    value: Any = obj
    for name, key, wanted, quoted, index in _STEP.findall(column.get("jsonPath", "")):
        if key:
            matching = [item for item in value or [] if isinstance(item, dict) and item.get(key) == wanted]
            value = matching[0] if matching else None
        elif index:
            value = value[int(index)] if isinstance(value, list) and len(value) > int(index) else None
        else:
            member = quoted or name.replace("\\.", ".")
            value = value.get(member) if isinstance(value, dict) else None
        if value is None:
            return None
    return age(value) if column.get("type") == "date" else value
