"""A Deployment's rollout as a computation: limits in pods, completion, and the conditions that report progress."""

from __future__ import annotations

from typing import Any

from sandbox.controllers.matching import scaled
from sandbox.controllers.objects import meta, with_condition
from sandbox.kube.times import now

Object = dict[str, Any]
REVISION = "deployment.kubernetes.io/revision"
HASH_LABEL = "pod-template-hash"


def revision_of(replicaset: Object) -> int:
    return int((meta(replicaset).get("annotations") or {}).get(REVISION) or 0)


def without_hash(template: Object) -> Object:
    labels = {
        name: value
        for name, value in ((template.get("metadata") or {}).get("labels") or {}).items()
        if name != HASH_LABEL
    }
    metadata = {
        name: value for name, value in (template.get("metadata") or {}).items() if name != "creationTimestamp" and value
    }
    return {**template, "metadata": metadata | {"labels": labels}}


def fences(deployment: Object) -> tuple[int, int]:
    """``(maxSurge, maxUnavailable)`` in pods; one of them is at least 1, or nothing could ever move."""
    rolling = (deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    wanted = deployment["spec"]["replicas"]
    if (deployment["spec"].get("strategy") or {}).get("type") == "Recreate":
        return 0, 0
    surge = scaled(rolling.get("maxSurge"), wanted, round_up=True, default="25%")
    unavailable = scaled(rolling.get("maxUnavailable"), wanted, round_up=False, default="25%")
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, min(unavailable, wanted)


def settled(deployment: Object, status: Object) -> bool:
    wanted = deployment["spec"]["replicas"]
    return all(status.get(field, 0) == wanted for field in ("updatedReplicas", "replicas", "availableReplicas"))


def complete(deployment: Object) -> bool:
    status = deployment.get("status") or {}
    return settled(deployment, status) and status.get("observedGeneration", 0) >= meta(deployment)["generation"]


def with_updated(conditions: list[Object] | None, new: Object, *, refresh: bool = False) -> list[Object]:
    """Like :func:`with_condition`; ``lastUpdateTime`` moves when anything in the condition does, or on ``refresh``."""
    present: Any = next((each for each in conditions or [] if each["type"] == new["type"]), None)
    same = present is not None and all(present.get(name) == value for name, value in new.items())
    if same and not refresh:
        return list(conditions or [])
    result = with_condition(conditions, new)
    return with_condition(result, {**new, "lastUpdateTime": now()})


def progress(
    conditions: list[Object] | None, status: str, reason: str, message: str, *, refresh: bool = False
) -> list[Object]:
    new = {"type": "Progressing", "status": status, "reason": reason, "message": message}
    return with_updated(conditions, new, refresh=refresh)
