"""Deleting objects: finalizers, grace periods, propagation, and what follows a definition's end.

Collecting dependents is the garbage collector's work (kube-controller-manager); here only its finalizers are set.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from sandbox.apiserver import errors
from sandbox.apiserver.admission.chain import Admission
from sandbox.apiserver.errors import ApiError
from sandbox.apiserver.jsontools import Obj, clone, equal, rfc3339
from sandbox.apiserver.resources import Registry, Resource
from sandbox.apiserver.schema import crds
from sandbox.apiserver.storage.definitions import Definitions
from sandbox.apiserver.store import Record, Store
from sandbox.latency import Latencies
from sandbox.settings import Clock


class Deletion:
    """Reading and deleting; :class:`sandbox.apiserver.storage.writer.Writer` adds the other writes."""

    def __init__(
        self, store: Store, registry: Registry, admission: Admission, clock: Clock, latencies: Latencies
    ) -> None:
        self.store = store
        self.registry = registry
        self.admission = admission
        self.definitions = Definitions(store, registry, clock, latencies, self.delete)

    def get(self, resource: Resource, namespace: str, name: str) -> Record:
        """
        :raises ApiError: 404.
        """
        record = self.store.get(resource.storage, namespace if resource.namespaced else "", name)
        if record is None:
            raise errors.not_found(resource, name)
        return self.versioned(resource, record)

    def versioned(self, resource: Resource, record: Record) -> Record:
        """The record in the version asked for; custom resources convert by changing their apiVersion."""
        if not resource.custom or record.obj.get("apiVersion") == resource.api_version:
            return record
        return Record({**record.obj, "apiVersion": resource.api_version}, record.revision)

    def delete(
        self, resource: Resource, namespace: str, name: str, options: Obj, *, dry_run: bool = False
    ) -> tuple[Obj, bool]:
        """
        Delete, or begin to.

        :param options: a ``DeleteOptions``.
        :returns: the object as it is or was, and whether it is gone already.
        :raises ApiError: 404, or 409 for a failed precondition.
        """
        record = self.get(resource, namespace, name)
        old = record.obj
        self._preconditions(resource, old, options.get("preconditions") or {})
        if resource.kind == "Namespace" and not resource.custom:
            self.admission.protect_namespace(resource, name)
        new = clone(old)
        metadata = new["metadata"]
        if resource.storage == crds.KEY and not metadata.get("deletionTimestamp"):
            crds.mark_deleted(new)
            if not dry_run:
                self.definitions.deleted(self.store.put(resource.storage, new).obj)
            return new, False
        metadata["finalizers"] = _propagation_finalizers(metadata.get("finalizers") or [], options)
        if not metadata["finalizers"]:
            del metadata["finalizers"]
        grace = _grace_period(resource, new, options)
        waits = bool(metadata.get("finalizers")) or grace > 0 or _keeps_namespace(resource, new)
        if not waits:
            if dry_run:
                return old, True
            gone = self._remove(resource, None, metadata.get("namespace", ""), name)
            return gone.obj, True
        if metadata.get("deletionTimestamp"):
            if resource.kind == "Pod" and grace < (metadata.get("deletionGracePeriodSeconds") or 0):
                metadata["deletionGracePeriodSeconds"] = grace
                metadata["deletionTimestamp"] = now_plus(grace)
        else:
            metadata["deletionTimestamp"] = now_plus(grace)
            metadata["deletionGracePeriodSeconds"] = grace
            if metadata.get("generation"):
                metadata["generation"] += 1
        if resource.kind == "Namespace" and not resource.custom:
            new.setdefault("status", {})["phase"] = "Terminating"
        if dry_run or equal(new, old):
            return new, False
        return self.store.put(resource.storage, new).obj, False

    @staticmethod
    def _preconditions(resource: Resource, obj: Obj, wanted: Obj) -> None:
        metadata = obj["metadata"]
        for key, label in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
            if wanted.get(key) and wanted[key] != metadata[key]:
                raise errors.unmet_precondition(resource, metadata["name"], label, wanted[key], metadata[key])

    def _remove(self, resource: Resource, last: Obj | None, namespace: str = "", name: str = "") -> Record:
        if last is not None:
            namespace, name = last["metadata"].get("namespace", ""), last["metadata"]["name"]
        record = self.store.remove(resource.storage, namespace, name, last)
        if resource.storage == crds.KEY:
            self.definitions.gone(record.obj)
        elif resource.custom:
            self.definitions.finish(f"{resource.plural}.{resource.group}")
        return record


def finished(resource: Resource, obj: Obj) -> bool:
    """Whether an object that is being deleted has nothing left to wait for."""
    metadata = obj["metadata"]
    if not metadata.get("deletionTimestamp") or metadata.get("finalizers"):
        return False
    if resource.kind == "Namespace" and not resource.custom:
        return not (obj.get("spec") or {}).get("finalizers")
    return not metadata.get("deletionGracePeriodSeconds")


def now_plus(seconds: int) -> str:
    return rfc3339(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds))


def _propagation_finalizers(current: list[str], options: Obj) -> list[str]:
    """The object's finalizers with those of the propagation policy (registry/generic/registry/store.go)."""
    policy = options.get("propagationPolicy")
    if policy is None and "orphanDependents" in options:
        policy = "Orphan" if options["orphanDependents"] else "Background"
    if policy not in (None, "", "Orphan", "Foreground", "Background"):
        raise ApiError(
            422,
            "Invalid",
            f'DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: Unsupported value: "{policy}": '
            'supported values: "Background", "Foreground", "Orphan"',
        )
    if not policy:
        return list(current)
    kept = [item for item in current if item not in ("orphan", "foregroundDeletion")]
    return kept + {"Orphan": ["orphan"], "Foreground": ["foregroundDeletion"], "Background": []}[policy]


def _grace_period(resource: Resource, obj: Obj, options: Obj) -> int:
    """Seconds until a pod may be removed; other kinds have no grace (pkg/registry/core/pod/strategy.go)."""
    if resource.kind != "Pod" or resource.custom:
        return 0
    asked: Any = options.get("gracePeriodSeconds")
    spec = obj.get("spec") or {}
    grace = spec.get("terminationGracePeriodSeconds", 30) if asked is None else asked
    if not spec.get("nodeName") or (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        grace = 0
    left = obj["metadata"].get("deletionGracePeriodSeconds")
    if obj["metadata"].get("deletionTimestamp") and asked is None and left is not None:
        return int(left)
    return max(0, int(grace))


def _keeps_namespace(resource: Resource, obj: Obj) -> bool:
    return resource.kind == "Namespace" and not resource.custom and bool((obj.get("spec") or {}).get("finalizers"))
