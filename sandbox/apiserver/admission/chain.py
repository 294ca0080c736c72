"""Admission plugins, which refuse or complete valid objects: namespaces, classes, quotas, service accounts.

Plugins of a real server with their messages: NamespaceLifecycle, ServiceAccount, Priority, RuntimeClass,
DefaultTolerationSeconds, TaintNodesAtCreation, ResourceQuota.
"""

from __future__ import annotations

from sandbox.apiserver.access.auth import User
from sandbox.apiserver.admission import podidentity, quota
from sandbox.apiserver.admission.mutation import MutatingWebhook
from sandbox.apiserver.errors import forbidden, not_found
from sandbox.apiserver.jsontools import Obj, clone
from sandbox.apiserver.resources import Registry, Resource
from sandbox.apiserver.store import Store
from sandbox.faults import FaultBoard

_PROTECTED = frozenset({"default", "kube-system", "kube-public"})
_CLASSES = ("node.k8s.io", "runtimeclasses")
_PRIORITIES = ("scheduling.k8s.io", "priorityclasses")
_TOLERATION_SECONDS = 300
_NOT_READY = "node.kubernetes.io/not-ready"
_NODE_TAINTS = (_NOT_READY, "node.kubernetes.io/unreachable")


class Admission:
    """
    :ivar associated: which ServiceAccounts have a pod identity association; EKS knows.
    """

    def __init__(self, store: Store, registry: Registry, faults: FaultBoard, region: str = "") -> None:
        self._store = store
        self._region = region
        self.associated: podidentity.Associations = podidentity.nobody
        self._registry = registry
        self._faults = faults
        self.webhook = MutatingWebhook(faults)

    # ---- namespaces

    def namespace(self, resource: Resource, metadata: Obj) -> None:
        """
        :raises ApiError: 404 if the namespace of a new object is absent, 403 if it is being terminated.
        """
        if not resource.namespaced:
            return
        name = metadata["namespace"]
        namespaces = self._registry.builtin("namespaces")
        record = self._store.get(namespaces.storage, "", name)
        if record is None:
            raise not_found(namespaces, name)
        if record.obj["metadata"].get("deletionTimestamp"):
            cause = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {name} is being terminated",
                "field": "metadata.namespace",
            }
            detail = f"unable to create new content in namespace {name} because it is being terminated"
            raise forbidden(resource, metadata.get("name", ""), detail, [cause])

    @staticmethod
    def protect_namespace(resource: Resource, name: str) -> None:
        """
        :raises ApiError: 403 for a namespace that must stay.
        """
        if name in _PROTECTED:
            raise forbidden(resource, name, "this namespace may not be deleted")

    # ---- creation

    def mutate(self, resource: Resource, obj: Obj, user: User) -> None:
        """Complete a new object, in place."""
        del user
        if resource.kind == "Node" and not resource.custom:
            _taint(obj)
        if resource.kind == "Pod" and not resource.custom:
            self._service_account(resource, obj)
            self._identify(obj)
            self._priority(resource, obj)
            self._runtime_class(resource, obj)
            _default_tolerations(obj["spec"])

    def validate_create(self, resource: Resource, obj: Obj, *, dry_run: bool) -> None:
        """
        Charge a new object to the quotas of its namespace.

        :raises ApiError: 403 for a quota that would be exceeded.
        """
        if resource.namespaced:
            quota.charge(self._store, resource, obj, None, dry_run=dry_run)

    def validate_update(self, resource: Resource, new: Obj, old: Obj, subresource: str, *, dry_run: bool) -> None:
        if resource.namespaced and not subresource:
            quota.charge(self._store, resource, new, old, dry_run=dry_run)

    def _pod_name(self, pod: Obj) -> str:
        """Pods that are still to be named are reported by their prefix, as the real plugins do."""
        metadata = pod["metadata"]
        return str(metadata.get("generateName") or metadata.get("name", ""))

    def _service_account(self, resource: Resource, pod: Obj) -> None:
        spec, namespace = pod["spec"], pod["metadata"]["namespace"]
        name = spec.setdefault("serviceAccountName", "default")
        spec["serviceAccount"] = name
        accounts = self._registry.builtin("serviceaccounts")
        # 'default' is made by a controller moments after its namespace; no client depends on losing that race.
        if name != "default" and self._store.get(accounts.storage, namespace, name) is None:
            detail = f'error looking up service account {namespace}/{name}: serviceaccount "{name}" not found'
            raise forbidden(resource, self._pod_name(pod), detail)

    def _identify(self, pod: Obj) -> None:
        accounts = self._registry.builtin("serviceaccounts")
        record = self._store.get(accounts.storage, pod["metadata"]["namespace"], pod["spec"]["serviceAccountName"])
        podidentity.identify(pod, None if record is None else record.obj, self.associated, self._region)

    def _priority(self, resource: Resource, pod: Obj) -> None:
        spec = pod["spec"]
        name = spec.get("priorityClassName")
        if not name:
            found = next((item.obj for item in self._store.list(_PRIORITIES) if item.obj.get("globalDefault")), None)
            if found is not None:
                spec["priorityClassName"] = found["metadata"]["name"]
        else:
            record = self._store.get(_PRIORITIES, "", name)
            if record is None:
                raise forbidden(resource, self._pod_name(pod), f"no PriorityClass with name {name} was found")
            found = record.obj
        spec["priority"] = found["value"] if found else 0
        spec["preemptionPolicy"] = (
            found.get("preemptionPolicy", "PreemptLowerPriority") if found else "PreemptLowerPriority"
        )

    def _runtime_class(self, resource: Resource, pod: Obj) -> None:
        name = pod["spec"].get("runtimeClassName")
        if not name:
            return
        record = self._store.get(_CLASSES, "", name)
        if record is None or self._faults.active("runtimeclass-dropped") is not None:
            raise forbidden(resource, self._pod_name(pod), f'pod rejected: RuntimeClass "{name}" not found')
        overhead = (record.obj.get("overhead") or {}).get("podFixed")
        if overhead:
            pod["spec"]["overhead"] = dict(overhead)
        scheduling = record.obj.get("scheduling") or {}
        if scheduling.get("nodeSelector"):
            selector = pod["spec"].setdefault("nodeSelector", {})
            for key, value in scheduling["nodeSelector"].items():
                if selector.setdefault(key, value) != value:
                    detail = (
                        f"conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; "
                        f"pod.spec.nodeSelector[{key}] = {selector[key]}"
                    )
                    raise forbidden(resource, self._pod_name(pod), detail)
        for toleration in scheduling.get("tolerations") or []:
            tolerations = pod["spec"].setdefault("tolerations", [])
            if toleration not in tolerations:
                tolerations.append(clone(toleration))


def _taint(node: Obj) -> None:
    """No pod is bound to a node before the node controller has seen it Ready and removed the taint.

    plugin/pkg/admission/nodetaint/admission.go (TaintNodesAtCreation).
    """
    spec = node.setdefault("spec", {})
    taints = spec.get("taints") or []
    if all((item.get("key"), item.get("effect")) != (_NOT_READY, "NoSchedule") for item in taints):
        spec["taints"] = [*taints, {"key": _NOT_READY, "effect": "NoSchedule"}]


def _default_tolerations(spec: Obj) -> None:
    tolerations = spec.setdefault("tolerations", [])
    for key in _NODE_TAINTS:
        covered = any(
            item.get("key") in (key, None, "") and item.get("effect") in ("NoExecute", None, "") for item in tolerations
        )
        if not covered:
            tolerations.append(
                {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": _TOLERATION_SECONDS}
            )
