"""What makes a built-in object invalid (kubernetes pkg/apis/*/validation): the rules that a client can run into."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from sandbox.apiserver import quantities
from sandbox.apiserver.errors import Cause, forbidden_value, invalid_value, not_supported, required
from sandbox.apiserver.jsontools import Obj, dig, equal
from sandbox.apiserver.resources import Resource
from sandbox.apiserver.rules import jobs as job_rules
from sandbox.apiserver.rules import karpenter as karpenter_rules
from sandbox.apiserver.rules import names
from sandbox.apiserver.rules import rollouts as rollout_rules
from sandbox.apiserver.rules.pods import RESTART_POLICIES, pod, pod_spec
from sandbox.apiserver.rules.selectors import label_selector
from sandbox.apiserver.schema import crds, structural

_IMMUTABLE = "field is immutable"
_DNS_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_DATA_KEY = re.compile(r"^[-._a-zA-Z0-9]+$")
_MAX_DATA = 1024 * 1024


def _selector_of_template(new: Obj, old: Obj | None) -> Iterator[Cause]:
    """Deployment, DaemonSet, ReplicaSet, StatefulSet: a selector that fits the template and never changes."""
    spec = new.get("spec") or {}
    selector = spec.get("selector")
    template = spec.get("template") or {}
    if not selector:
        yield required("spec.selector")
    elif not selector.get("matchLabels") and not selector.get("matchExpressions"):
        yield invalid_value("spec.selector", selector, "empty selector is invalid for deployment")
    labels = dig(template, "metadata", "labels") or {}
    if selector and not label_selector(selector)(labels):
        yield invalid_value("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")
    yield from names.labels(labels, "spec.template.metadata.labels")
    yield from pod_spec(template.get("spec") or {}, "spec.template.spec")
    restart = dig(template, "spec", "restartPolicy")
    if restart in RESTART_POLICIES and restart != "Always":
        yield not_supported("spec.template.spec.restartPolicy", restart, ["Always"])
    if isinstance(spec.get("replicas"), int) and spec["replicas"] < 0:
        yield invalid_value("spec.replicas", spec["replicas"], "must be greater than or equal to 0")
    if old is not None and not equal(selector, dig(old, "spec", "selector")):
        yield invalid_value("spec.selector", selector, _IMMUTABLE)


_STATEFUL_SET_MUTABLE = frozenset(
    {
        "minReadySeconds",
        "ordinals",
        "persistentVolumeClaimRetentionPolicy",
        "replicas",
        "revisionHistoryLimit",
        "template",
        "updateStrategy",
    }
)


def _stateful_set(new: Obj, old: Obj | None) -> Iterator[Cause]:
    if old is None:
        yield from _selector_of_template(new, None)
        return
    spec, before = new["spec"], old["spec"]
    if any(not equal(spec.get(key), before.get(key)) for key in (spec.keys() | before.keys()) - _STATEFUL_SET_MUTABLE):
        yield forbidden_value(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', "
            "'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        )


def _job(new: Obj, old: Obj | None) -> Iterator[Cause]:
    if old is None:
        yield from job_rules.spec(new)
        template = dig(new, "spec", "template", "spec") or {}
        yield from (cause for cause in pod_spec(template, "spec.template.spec") if "restartPolicy" not in cause.field)
        return
    for key in ("activeDeadlineSeconds", "backoffLimit", "parallelism", "ttlSecondsAfterFinished"):
        yield from job_rules.not_negative(dig(new, "spec", key), f"spec.{key}")
    yield from job_rules.spec_update(new, old)


def _deployment(new: Obj, old: Obj | None) -> Iterator[Cause]:
    yield from rollout_rules.deployment(new)
    yield from _selector_of_template(new, old)


def _daemon_set(new: Obj, old: Obj | None) -> Iterator[Cause]:
    yield from rollout_rules.daemon_set(new)
    yield from _selector_of_template(new, old)


def _runtime_class(new: Obj, old: Obj | None) -> Iterator[Cause]:
    handler = new.get("handler")
    if not handler:
        yield required("handler")
    elif not _DNS_LABEL.match(handler):
        yield invalid_value("handler", handler, names.LABEL_TEXT)
    if old is not None and handler != old.get("handler"):
        yield invalid_value("handler", handler, _IMMUTABLE)


def _priority_class(new: Obj, old: Obj | None) -> Iterator[Cause]:
    value, name = new.get("value", 0), new["metadata"]["name"]
    if name.startswith("system-") and name not in ("system-node-critical", "system-cluster-critical"):
        yield forbidden_value(
            "metadata.name", "priority class names with 'system-' prefix are reserved for system use only"
        )
    elif not name.startswith("system-") and value > 1_000_000_000:
        yield forbidden_value("value", "maximum allowed value of a user defined priority is 1000000000")
    if old is not None and value != old.get("value", 0):
        yield invalid_value("value", value, _IMMUTABLE)
    if old is not None and new.get("preemptionPolicy") != old.get("preemptionPolicy"):
        yield invalid_value("preemptionPolicy", new.get("preemptionPolicy"), _IMMUTABLE)


def _data(new: Obj, old: Obj | None) -> Iterator[Cause]:
    """ConfigMap and Secret."""
    size = 0
    for part in ("data", "binaryData"):
        for key, value in (new.get(part) or {}).items():
            size += len(key) + (len(value) * 3 // 4 if new["kind"] == "Secret" or part == "binaryData" else len(value))
            if not _DATA_KEY.match(key) or len(key) > 253:
                yield invalid_value(
                    f"{part}[{key}]",
                    key,
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or "
                    "'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                )
    if size > _MAX_DATA:
        where = "data" if new["kind"] == "Secret" else ""
        yield Cause("FieldValueTooLong", where, detail=f"may not be more than {_MAX_DATA} bytes")
    if old is None:
        return
    if old.get("immutable"):
        if not new.get("immutable"):
            yield forbidden_value("immutable", "field is immutable when `immutable` is set")
        for part in ("data", "binaryData"):
            if not equal(new.get(part), old.get(part)):
                yield forbidden_value(part, "field is immutable when `immutable` is set")
    if new.get("type") != old.get("type"):
        yield invalid_value("type", new.get("type", ""), _IMMUTABLE)


def _service(new: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = new.get("spec") or {}
    ports = spec.get("ports") or []
    if not ports and spec.get("clusterIP") != "None" and spec.get("type") != "ExternalName":
        yield required("spec.ports")
    for index, port in enumerate(ports):
        if len(ports) > 1 and not port.get("name"):
            yield required(f"spec.ports[{index}].name")
        number = port.get("port")
        if not isinstance(number, int) or not 1 <= number <= 65535:
            yield invalid_value(f"spec.ports[{index}].port", number, "must be between 1 and 65535, inclusive")
    before = dig(old, "spec", "clusterIP") if old is not None else None
    if before and before != spec.get("clusterIP") and spec.get("type") != "ExternalName":
        yield invalid_value("spec.clusterIPs[0]", [spec.get("clusterIP")], "may not change once set")


def _role_binding(new: Obj, old: Obj | None) -> Iterator[Cause]:
    reference = new.get("roleRef") or {}
    if not reference.get("name"):
        yield required("roleRef.name")
    if reference.get("kind") not in ("Role", "ClusterRole"):
        yield not_supported("roleRef.kind", reference.get("kind", ""), ["ClusterRole", "Role"])
    if old is not None and not equal(reference, old.get("roleRef")):
        yield invalid_value("roleRef", reference, "cannot change roleRef")


def _disruption_budget(new: Obj, old: Obj | None) -> Iterator[Cause]:
    del old
    spec = new.get("spec") or {}
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        shown = json.dumps({key: spec[key] for key in ("minAvailable", "maxUnavailable")})
        yield invalid_value("spec", shown, "minAvailable and maxUnavailable cannot be both set")


def _node(new: Obj, old: Obj | None) -> Iterator[Cause]:
    seen: set[tuple[str, str]] = set()
    for index, taint in enumerate(dig(new, "spec", "taints") or []):
        where = f"metadata.taints[{index}]"
        if taint.get("effect") not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
            supported = ["NoSchedule", "PreferNoSchedule", "NoExecute"]
            yield not_supported(f"{where}.effect", taint.get("effect"), supported)
        identity = (taint.get("key", ""), taint.get("effect", ""))
        if identity in seen:
            yield Cause("FieldValueDuplicate", where, taint)
        seen.add(identity)
    before = dig(old, "spec", "providerID") if old is not None else None
    if before and dig(new, "spec", "providerID") != before:
        yield forbidden_value("spec.providerID", 'node updates may not change providerID except from "" to valid')


def _lease(new: Obj, old: Obj | None) -> Iterator[Cause]:
    del old
    duration = dig(new, "spec", "leaseDurationSeconds")
    if duration is not None and duration <= 0:
        yield invalid_value("spec.leaseDurationSeconds", duration, "must be greater than 0")
    transitions = dig(new, "spec", "leaseTransitions")
    if transitions is not None and transitions < 0:
        yield invalid_value("spec.leaseTransitions", transitions, "must be greater than or equal to 0")


def _definition(new: Obj, old: Obj | None) -> Iterator[Cause]:
    yield from crds.validate(new)
    if old is not None:
        for path in (("spec", "group"), ("spec", "scope"), ("spec", "names", "kind"), ("spec", "names", "plural")):
            if dig(new, *path) != dig(old, *path):
                yield invalid_value(".".join(path), dig(new, *path), _IMMUTABLE)


def _quota(new: Obj, old: Obj | None) -> Iterator[Cause]:
    del old
    for name, value in (dig(new, "spec", "hard") or {}).items():
        try:
            quantities.parse(value)
        except ValueError as problem:
            yield invalid_value(f"spec.hard[{name}]", value, str(problem))


_BY_KIND: dict[str, Callable[[Obj, Obj | None], Iterator[Cause]]] = {
    "Pod": pod,
    "Deployment": _deployment,
    "DaemonSet": _daemon_set,
    "ReplicaSet": _selector_of_template,
    "StatefulSet": _stateful_set,
    "Job": _job,
    "RuntimeClass": _runtime_class,
    "PriorityClass": _priority_class,
    "ConfigMap": _data,
    "Secret": _data,
    "Service": _service,
    "RoleBinding": _role_binding,
    "ClusterRoleBinding": _role_binding,
    "PodDisruptionBudget": _disruption_budget,
    "Node": _node,
    "Lease": _lease,
    "CustomResourceDefinition": _definition,
    "ResourceQuota": _quota,
}


def builtin(resource: Resource, new: Obj, old: Obj | None, subresource: str = "") -> list[Cause]:
    """Violations of a built-in object; ``old`` is ``None`` for a new one."""
    if resource.kind == "Job" and subresource == "status" and old is not None:
        return list(job_rules.status_update(new, old))
    checker = _BY_KIND.get(resource.kind)
    if checker is None:
        return []
    causes = list(checker(new, old))
    if resource.kind != "Deployment":
        kind = resource.kind.lower()
        causes = [
            Cause(cause.type, cause.field, cause.value, cause.detail.replace("for deployment", f"for {kind}"))
            for cause in causes
        ]
    return causes


def custom(resource: Resource, new: Obj, old: Obj | None) -> list[Cause]:
    """Violations of a custom resource: its schema, then the CEL rules that are known."""
    checked = {key: value for key, value in new.items() if key not in ("metadata", "apiVersion", "kind")}
    schema = resource.schema or {}
    causes = list(structural.validate(schema, checked))
    if structural.keeps_rules_unchecked(schema, causes):
        return [*causes, invalid_value("<nil>", None, structural.UNCHECKED)]
    return causes + karpenter_rules.check(resource, new, old)
