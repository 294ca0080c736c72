"""What the API server writes into the audit log about a request, and what it leaves out.

Fields after apiserver ``pkg/apis/audit/v1/types.go`` and ``pkg/audit/request.go`` (kubernetes v1.35). Two things a real
server does not do, both so that a reader can identify the object: ``objectRef`` has the UID, and the name if
the server generated it, where a real one knows only what the request said; and the annotation ``sandbox/object`` has
labels, node and owners of the object as it was before the write (after it, if it is new).
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec
from aiohttp import web

from sandbox.apiserver.access.auth import User
from sandbox.apiserver.errors import ApiError
from sandbox.apiserver.jsontools import Obj
from sandbox.apiserver.requests.representations import negotiation, protobuf
from sandbox.apiserver.requests.routing import Target
from sandbox.apiserver.store import Record, Store
from sandbox.audit import AuditLog, timestamp

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
#: Questions in the form of a creation; they write nothing.
_QUESTIONS = frozenset({"authentication.k8s.io", "authorization.k8s.io"})
#: What the control plane writes all the time (the audit policy of kube-up leaves out events, and leases of nodes).
_CHATTER = frozenset({"events", "leases"})
#: Bodies that may be secret are in no audit log: only that they were written.
_CONFIDENTIAL = frozenset({"secrets", "configmaps", "serviceaccounts/token"})
OBJECT = "sandbox/object"
DRY_RUN = "sandbox/dry-run"


def is_control_plane(user: User) -> bool:
    """Controllers, scheduler, kubelets and service accounts of ``kube-system``."""
    name = user.name
    return name.startswith("system:") and (
        not name.startswith("system:serviceaccount:") or name.startswith("system:serviceaccount:kube-system:")
    )


def is_logged(target: Target, user: User) -> bool:
    """The audit policy, first part: whether there is an event at all."""
    if target.verb not in WRITES or target.resource.group in _QUESTIONS:
        return False
    if target.subresource == "log":  # the kubelets' door of this sandbox, see sandbox/nodes/runtime/logs.py
        return False
    return not (target.resource.plural in _CHATTER and is_control_plane(user))


class Auditor:
    """Makes events of requests.

    :param log: where they go.
    :param store: where objects are looked up before they are written.
    """

    def __init__(self, log: AuditLog, store: Store) -> None:
        self._log = log
        self._store = store

    def begin(self, target: Target, user: User) -> Audited | None:
        """To be called before the write; ``None`` if it is not to be logged."""
        if not is_logged(target, user):
            return None
        namespace = target.namespace if target.resource.namespaced else ""
        before = self._store.get(target.resource.storage, namespace, target.name) if target.name else None
        return Audited(time.time(), before)

    async def end(
        self,
        begun: Audited,
        request: web.Request,
        target: Target,
        users: tuple[User, User],
        written: Record | None,
        outcome: int | ApiError,
    ) -> None:
        """
        :param users: who asked, and as whom (the same unless impersonated).
        :param written: the object that the write led to, if it was no deletion.
        :param outcome: the status code, or the refusal.
        """
        user, acting = users
        record = begun.before or written
        resource = target.resource
        reference = {
            "resource": resource.plural,
            "namespace": target.namespace,
            "name": target.name or (written.name if written is not None else ""),
            "uid": record.obj["metadata"].get("uid", "") if record is not None else "",
            "apiGroup": resource.group,
            "apiVersion": resource.version,
            "subresource": target.subresource,
        }
        event: Obj = {
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": "Metadata",
            "auditID": str(uuid.uuid4()),
            "stage": "ResponseComplete",
            "requestURI": request.raw_path,
            "verb": target.verb,
            "user": user.info(),
            "sourceIPs": [request.remote or ""],
            "userAgent": request.headers.get("User-Agent", ""),
            "objectRef": {key: value for key, value in reference.items() if value},
            "responseStatus": _status(outcome),
            "requestReceivedTimestamp": timestamp(begun.received),
            "stageTimestamp": timestamp(time.time()),
            "annotations": {"authorization.k8s.io/decision": "forbid" if _is_forbidden(outcome) else "allow"},
        }
        if acting is not user:
            event["impersonatedUser"] = acting.info()
        if record is not None and target.subresource != "status":
            event["annotations"][OBJECT] = msgspec.json.encode(_facts(record.obj)).decode()
        # Of a refused request the body may be anything, and may not even have been read.
        body = None if isinstance(outcome, ApiError) else await self._body(request, target, acting)
        if body is not None:
            event |= {"level": "Request", "requestObject": body}
        if "dryRun" in request.query or (isinstance(body, dict) and body.get("dryRun")):
            event["annotations"][DRY_RUN] = "true"
        self._log.append(event)

    async def _body(self, request: web.Request, target: Target, user: User) -> Any:
        """The request's object, where the policy's level is Request: for all users but the control plane."""
        name = target.resource.plural + (f"/{target.subresource}" if target.subresource else "")
        if is_control_plane(user) or name in _CONFIDENTIAL:
            return None
        raw = await request.read()
        if not raw.strip():
            return None
        header = request.headers.get("Content-Type", "application/json")
        kind = negotiation.media_type(header)
        return negotiation.decode(raw, header)[0] if kind == protobuf.CONTENT_TYPE else negotiation.parse_yaml(raw)


class Audited:
    """A write that has begun. ``received`` in epoch seconds; ``before``: the object as it was, if it was there."""

    __slots__ = ("before", "received")

    def __init__(self, received: float, before: Record | None) -> None:
        self.received = received
        self.before = before


def _status(outcome: int | ApiError) -> Obj:
    if isinstance(outcome, int):
        return {"metadata": {}, "code": outcome}
    status = outcome.status()
    return {"metadata": {}, "status": "Failure", "message": status["message"], "reason": outcome.reason} | {
        "code": outcome.code
    }


def _is_forbidden(outcome: int | ApiError) -> bool:
    return isinstance(outcome, ApiError) and outcome.code == 403


def _facts(obj: Obj) -> Obj:
    """Labels, node and owners of an object."""
    metadata, spec = obj["metadata"], obj.get("spec")
    owners = [f"{owner['kind']}/{owner['name']}" for owner in metadata.get("ownerReferences") or []]
    node = spec.get("nodeName") if isinstance(spec, dict) else None
    found = {"labels": metadata.get("labels"), "node": node, "owners": owners}
    return {key: value for key, value in found.items() if value}
