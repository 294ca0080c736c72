"""The Event object as the client-go recorder makes it."""

from __future__ import annotations

from typing import Any

from sandbox.kube.times import now

Object = dict[str, Any]


def event_of(
    involved: Object, name: str, namespace: str, reason: str, message: str, component: str, event_type: str
) -> Object:
    meta = involved["metadata"]
    reference = {"apiVersion": involved.get("apiVersion"), "kind": involved.get("kind"), "name": meta["name"]}
    optional = {"namespace": meta.get("namespace"), "uid": meta.get("uid")}
    optional["resourceVersion"] = meta.get("resourceVersion")
    reference |= {field: value for field, value in optional.items() if value}
    moment = now()
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": reference,
        "reason": reason,
        "message": message[:1024],
        "source": {"component": component},
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
        "type": event_type,
        "reportingComponent": component,
        "reportingInstance": "",
    }
