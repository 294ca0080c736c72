"""Everything below an object except its status: eviction, binding, logs, scale, tokens, namespace finalizers."""

from __future__ import annotations

from typing import Any

from sandbox.apiserver import errors
from sandbox.apiserver.access.auth import ServiceAccountTokens
from sandbox.apiserver.errors import ApiError
from sandbox.apiserver.jsontools import Obj, clone, dig, now, rfc3339
from sandbox.apiserver.resources import Resource
from sandbox.apiserver.storage import eviction
from sandbox.apiserver.storage.options import Options
from sandbox.apiserver.storage.writer import Writer
from sandbox.apiserver.store import Record

LogKey = tuple[str, str, str, str]  # namespace, pod, uid, container


def _unbindable(pod: Obj) -> str:
    """Why a pod cannot be given to a node; "" if it can."""
    name = pod["metadata"]["name"]
    if pod["metadata"].get("deletionTimestamp"):
        return f"pod {name} is being deleted, cannot be assigned to a host"
    if dig(pod, "spec", "nodeName"):
        return f'pod {name} is already assigned to node "{pod["spec"]["nodeName"]}"'
    if dig(pod, "spec", "schedulingGates"):
        return f"pod {name} has non-empty .spec.schedulingGates"
    return ""


def bind(writer: Writer, resource: Resource, namespace: str, name: str, body: Obj, options: Options) -> Obj:
    """
    Bind a pod to a node, as the scheduler does (pkg/registry/core/pod/storage/storage.go, v1.36 ``assignPod``).

    :raises ApiError: 409 if it is bound already, gated, or not the pod that is meant; 500 without a target.
    """
    target = dig(body, "target", "name")
    if not target:  # an aggregate of field errors, which no handler turns into a Status of its own
        raise ApiError(500, "", str(errors.required("target.name")))
    pod = writer.get(resource, namespace, name).obj
    metadata = pod["metadata"]
    for key, label in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
        wanted = dig(body, "metadata", key)
        if wanted and wanted != metadata[key]:
            raise errors.stored_otherwise(resource, namespace, name, label, wanted, metadata[key])
    if problem := _unbindable(pod):
        details = {"name": name, "kind": "pods/binding"}
        text = f'Operation cannot be fulfilled on pods/binding "{name}": {problem}'
        raise ApiError(409, "Conflict", text, details=details)
    new = clone(pod)
    new["spec"]["nodeName"] = target
    annotations = dig(body, "metadata", "annotations")
    if annotations:
        new["metadata"]["annotations"] = {**(new["metadata"].get("annotations") or {}), **annotations}
    conditions = [item for item in dig(new, "status", "conditions") or [] if item["type"] != "PodScheduled"]
    conditions.append({"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": now()})
    new.setdefault("status", {})["conditions"] = conditions
    if not options.dry_run:
        writer.store.put(resource.storage, new)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def evict(writer: Writer, resource: Resource, namespace: str, name: str, body: Obj, options: Options) -> Obj:
    """Delete a pod if its disruption budget allows (policy/v1 Eviction)."""
    delete_options = dict(body.get("deleteOptions") or {})
    dry_run = options.dry_run or "All" in (delete_options.get("dryRun") or [])
    eviction.check(writer, resource, namespace, name, dry_run=dry_run)
    writer.delete(resource, namespace, name, delete_options, dry_run=dry_run)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def read_scale(writer: Writer, resource: Resource, namespace: str, name: str) -> Obj:
    obj = writer.get(resource, namespace, name).obj
    metadata = obj["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    selector = dig(obj, "spec", "selector", "matchLabels") or {}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: metadata[key] for key in kept if key in metadata},
        "spec": {"replicas": dig(obj, "spec", "replicas") or 0},
        "status": {
            "replicas": dig(obj, "status", "replicas") or 0,
            "selector": ",".join(f"{key}={value}" for key, value in sorted(selector.items())),
        },
    }


def write_scale(writer: Writer, resource: Resource, namespace: str, name: str, scale: Obj, options: Options) -> Obj:
    """Set the replicas; the writer owns them through the subresource ``scale``."""
    replicas: Any = dig(scale, "spec", "replicas") or 0
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
        cause = errors.invalid_value("spec.replicas", replicas, "must be greater than or equal to 0")
        raise errors.invalid(resource, name, [cause])
    version = dig(scale, "metadata", "resourceVersion")

    def modify(obj: Obj) -> Obj:
        obj["spec"]["replicas"] = replicas
        if version:
            obj["metadata"]["resourceVersion"] = version
        return obj

    writer.update(resource, namespace, name, modify, options, subresource="scale")
    result = read_scale(writer, resource, namespace, name)
    result["spec"]["replicas"] = replicas
    return result


def finalize_namespace(writer: Writer, resource: Resource, name: str, body: Obj, options: Options) -> Record:
    """Replace the finalizers in a namespace's spec; the last one to go takes the namespace with it."""
    finalizers = dig(body, "spec", "finalizers") or []

    def modify(obj: Obj) -> Obj:
        obj["spec"] = {"finalizers": finalizers} if finalizers else {}
        return obj

    record, _ = writer.update(resource, name, name, modify, options)
    return record


def issue_token(
    writer: Writer, resource: Resource, namespace: str, name: str, body: Obj, tokens: ServiceAccountTokens
) -> Obj:
    """``serviceaccounts/token``: a token for the account, valid for 10 minutes or longer."""
    import datetime as dt

    account = writer.get(resource, namespace, name).obj
    spec = dict(body.get("spec") or {})
    seconds = int(spec.get("expirationSeconds") or 3600)
    if seconds < 600:
        cause = errors.invalid_value(
            "spec.expirationSeconds", seconds, "may not specify a duration less than 10 minutes"
        )
        raise ApiError(422, "Invalid", f'TokenRequest.authentication.k8s.io "" is invalid: {cause}')
    token, expiry = tokens.issue(namespace, name, account["metadata"]["uid"], spec.get("audiences") or [], seconds)
    spec["expirationSeconds"] = seconds
    spec.setdefault("audiences", ["https://kubernetes.default.svc"])
    stamp = rfc3339(dt.datetime.fromtimestamp(expiry, dt.UTC))
    return {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": now()},
        "spec": spec,
        "status": {"token": token, "expirationTimestamp": stamp},
    }


class PodLogs:
    """Log texts that kubelets have uploaded; deleted with their pod."""

    def __init__(self) -> None:
        self._texts: dict[LogKey, bytes] = {}

    def put(self, pod: Obj, container: str, text: bytes) -> None:
        self._texts[self._key(pod, container)] = text

    def forget(self, pod: Obj) -> None:
        prefix = self._key(pod, "")[:3]
        for key in [key for key in self._texts if key[:3] == prefix]:
            del self._texts[key]

    @staticmethod
    def _key(pod: Obj, container: str) -> LogKey:
        metadata = pod["metadata"]
        return metadata["namespace"], metadata["name"], metadata["uid"], container

    def read(self, pod: Obj, container: str) -> bytes:
        """
        :raises ApiError: 400 if no container is meant, or it has not started.
        """
        name = pod["metadata"]["name"]
        declared = [item["name"] for part in ("initContainers", "containers") for item in pod["spec"].get(part) or []]
        if not container:
            mains = [item["name"] for item in pod["spec"].get("containers") or []]
            if len(mains) > 1:
                text = f"a container name must be specified for pod {name}, choose one of: [{' '.join(mains)}]"
                raise errors.bad_request(text)
            container = mains[0]
        if container not in declared:
            raise errors.bad_request(f"container {container} is not valid for pod {name}")
        if not pod["spec"].get("nodeName"):
            raise errors.bad_request(f'container "{container}" in pod "{name}" is waiting to start: no node assigned')
        statuses = dig(pod, "status", "containerStatuses") or []
        status = next((item for item in statuses if item.get("name") == container), None)
        waiting = dig(status, "state", "waiting") if status else {"reason": "ContainerCreating"}
        key = self._key(pod, container)
        if waiting is not None and key not in self._texts:
            reason = waiting.get("reason", "ContainerCreating")
            raise errors.bad_request(f'container "{container}" in pod "{name}" is waiting to start: {reason}')
        return self._texts.get(key, b"")
