"""Reading and making objects: conditions, owners, pods from templates, hashes."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sandbox.kube.times import now

Object = dict[str, Any]

#: The letters of generated hashes: no vowels and nothing that looks like them (apimachinery ``util/rand``).
_SAFE = "bcdfghjklmnpqrstvwxz2456789"


def meta(obj: Object) -> Object:
    metadata: Object = obj["metadata"]
    return metadata


def seconds(timestamp: str | None) -> float:
    """Epoch seconds of a metav1.Time or MicroTime; 0 for None."""
    if not timestamp:
        return 0.0
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def age(timestamp: str | None) -> float:
    """Real seconds since a timestamp."""
    return datetime.now(UTC).timestamp() - seconds(timestamp)


# --- owners --------------------------------------------------------------------------------------------------------


def controller_of(obj: Object) -> Object | None:
    """The owner reference with ``controller: true``."""
    for reference in meta(obj).get("ownerReferences") or []:
        if reference.get("controller"):
            return dict(reference)
    return None


def controller_uids(obj: Object) -> Iterable[str]:
    """Index function: the uid of the controlling owner."""
    owner = controller_of(obj)
    return (owner["uid"],) if owner else ()


def owner_reference(owner: Object) -> Object:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": meta(owner)["name"],
        "uid": meta(owner)["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


# --- conditions ----------------------------------------------------------------------------------------------------


def condition(obj: Object, kind: str) -> Object | None:
    for each in (obj.get("status") or {}).get("conditions") or []:
        if each["type"] == kind:
            return dict(each)
    return None


def holds(obj: Object, kind: str) -> bool:
    found = condition(obj, kind)
    return found is not None and found["status"] == "True"


def with_condition(conditions: list[Object] | None, new: Object, *, stamp: str = "lastTransitionTime") -> list[Object]:
    """``conditions`` with ``new`` in the place of its type; the transition time moves only when the status does."""
    result = []
    replaced = False
    for each in conditions or []:
        if each["type"] != new["type"]:
            result.append(each)
            continue
        replaced = True
        moved = each["status"] != new["status"]
        result.append(each | new | {stamp: now() if moved else each.get(stamp) or now()})
    if not replaced:
        result.append(new | {stamp: now()})
    return result


def status_patch(old: Object | None, new: Object) -> Object | None:
    """The merge patch from one status to another, or None when they are equal."""
    patch = _difference(old or {}, new)
    return patch or None


def _difference(old: Object, new: Object) -> Object:
    patch: Object = dict.fromkeys((name for name in old if name not in new), None)
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := _difference(before, value):
                patch[name] = inner
        elif before != value:
            patch[name] = value
    return patch


# --- pods ----------------------------------------------------------------------------------------------------------


def phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase") or "Pending")


def is_finished(pod: Object) -> bool:
    return phase(pod) in ("Succeeded", "Failed")


def is_deleting(obj: Object) -> bool:
    return bool(meta(obj).get("deletionTimestamp"))


def is_ready(pod: Object) -> bool:
    return holds(pod, "Ready")


def ready_for(pod: Object) -> float:
    """Real seconds since the pod became ready; negative when it is not."""
    found = condition(pod, "Ready")
    if found is None or found["status"] != "True":
        return -1.0
    return max(0.0, age(found.get("lastTransitionTime")))


def pod_from(template: Object, owner: Object, *, labels: dict[str, str] | None = None) -> Object:
    """A pod of a controller's template, not yet named."""
    template_meta = template.get("metadata") or {}
    metadata: Object = {
        "namespace": meta(owner)["namespace"],
        "generateName": f"{meta(owner)['name']}-",
        "labels": dict(template_meta.get("labels") or {}) | (labels or {}),
        "ownerReferences": [owner_reference(owner)],
    }
    if template_meta.get("annotations"):
        metadata["annotations"] = dict(template_meta["annotations"])
    if template_meta.get("finalizers"):
        metadata["finalizers"] = list(template_meta["finalizers"])
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": copy.deepcopy(template["spec"])}


def hash_of(value: Any, length: int = 10) -> str:
    """A short name-safe hash of JSON."""
    digest = int.from_bytes(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:12])
    letters = []
    for _ in range(length):
        digest, index = divmod(digest, len(_SAFE))
        letters.append(_SAFE[index])
    return "".join(letters)
