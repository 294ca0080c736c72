"""A mutating admission webhook, as image rewriters, service meshes and agents install one.

The fault ``mutate-pods`` switches it on. It stands for a MutatingWebhookConfiguration with ``sideEffects: None``, so it
sees dry runs too. Parameters, all optional:

``registry``     images become ``<registry>/<host>/<path>``, as a mirror in ECR has them; those that are, stay
``env``          ``{NAME: value}`` that every container gets, unless it has that variable
``labels``, ``annotations``  of the pod
``sidecar``      image of a container ``agent`` that every *pod* gets, and which never ends
``initImage``    image of a classic init container ``agent-init``; ``initExit``: its exit code, 0 by default
``namespaces``   list; without it all
``kinds``        list; ``["Pod"]`` by default. With a workload's kind its pod template is rewritten as well, on creation
                 and on update, as Kyverno's generated rules for pod controllers do

Source: kubernetes/kubernetes ``pkg/kubeapiserver/options/plugins.go`` (webhooks run after the mutating plugins of the
server itself and before validation and quota), apiserver ``pkg/admission/plugin/webhook/mutating/dispatcher.go`` (the
result is defaulted again), ``pkg/endpoints/handlers/create.go`` and ``update.go`` (managedFields are worked out before
admission, so no manager owns what a webhook adds).
"""

from __future__ import annotations

from typing import Any

from sandbox.apiserver.jsontools import Obj, clone
from sandbox.apiserver.resources import Resource
from sandbox.faults import FaultBoard

FAULT = "mutate-pods"
SIDECAR, INIT = "agent", "agent-init"
_TEMPLATES = ("Deployment", "DaemonSet", "StatefulSet", "ReplicaSet", "Job")


class MutatingWebhook:
    def __init__(self, faults: FaultBoard) -> None:
        self._faults = faults

    def call(self, resource: Resource, obj: Obj, operation: str) -> Obj | None:
        """Change an object in place.

        :param operation: ``CREATE`` or ``UPDATE``; a pod is changed on creation only, most of it is immutable.
        :returns: the object as it was asked for; ``None`` if nothing was changed.
        """
        params = self._faults.active(FAULT)
        if params is None or resource.custom or resource.kind not in (params.get("kinds") or ["Pod"]):
            return None
        namespaces = params.get("namespaces")
        if namespaces is not None and obj["metadata"].get("namespace") not in namespaces:
            return None
        asked = clone(obj)
        if resource.kind == "Pod" and operation == "CREATE":
            _metadata(obj["metadata"], params)
            _containers(obj["spec"], params)
            _inject(obj["spec"], params)
        elif resource.kind in _TEMPLATES:
            template = obj["spec"]["template"]
            _metadata(template.setdefault("metadata", {}), params)
            _containers(template["spec"], params)
        return asked if obj != asked else None


def _metadata(metadata: Obj, params: dict[str, Any]) -> None:
    for key in ("labels", "annotations"):
        if params.get(key):
            metadata[key] = {**(metadata.get(key) or {}), **params[key]}


def _containers(spec: Obj, params: dict[str, Any]) -> None:
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        if registry := params.get("registry"):
            container["image"] = mirrored(str(container["image"]), str(registry))
        known = {entry["name"] for entry in container.get("env") or []}
        added = [{"name": name, "value": str(value)} for name, value in (params.get("env") or {}).items()]
        if added := [entry for entry in added if entry["name"] not in known]:
            container["env"] = [*(container.get("env") or []), *added]


def _inject(spec: Obj, params: dict[str, Any]) -> None:
    resources = {"requests": {"cpu": "10m", "memory": "16Mi"}}
    names = {container["name"] for container in [*(spec.get("initContainers") or []), *spec["containers"]]}
    if params.get("sidecar") and SIDECAR not in names:
        spec["containers"] = [
            *spec["containers"],
            {"name": SIDECAR, "image": params["sidecar"], "resources": resources},
        ]
    if params.get("initImage") and INIT not in names:
        command = ["sh", "-c", f"exit {int(params.get('initExit') or 0)}"]
        first = {"name": INIT, "image": params["initImage"], "command": command, "resources": resources}
        spec["initContainers"] = [first, *(spec.get("initContainers") or [])]


def mirrored(image: str, registry: str) -> str:
    """The image's name in a mirror that keeps the host as the first part of the path."""
    if image.startswith(f"{registry}/"):
        return image
    host, slash, _ = image.partition("/")
    if not slash:
        return f"{registry}/docker.io/library/{image}"
    if "." in host or ":" in host or host == "localhost":
        return f"{registry}/{image}"
    return f"{registry}/docker.io/{image}"
