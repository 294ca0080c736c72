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
from sandbox.apiserver.rules.selectors import label_selector
from sandbox.apiserver.schema import crds, structural

_IMMUTABLE = "field is immutable"
_DNS_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_RESTART = ["Always", "OnFailure", "Never"]
_PULL = ["Always", "IfNotPresent", "Never"]
_OVERCOMMIT = frozenset({"cpu", "memory", "ephemeral-storage"})
_DATA_KEY = re.compile(r"^[-._a-zA-Z0-9]+$")
_MAX_DATA = 1024 * 1024
_INT32 = 2**31 - 1


def _extended(name: str) -> bool:
    """Whether a resource is an extended one (outside kubernetes.io), which cannot be overcommitted."""
    return "/" in name and not name.split("/")[0].endswith("kubernetes.io")


def _resources(resources: Obj, where: str) -> Iterator[Cause]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for part, values in (("limits", limits), ("requests", requests)):
        for name, value in values.items():
            spot = f"{where}.{part}[{name}]"
            try:
                amount = quantities.parse(value)
            except ValueError as problem:
                yield invalid_value(spot, value, str(problem))
                continue
            if amount < 0:
                yield invalid_value(spot, value, "must be greater than or equal to 0")
            elif _extended(name) and amount.denominator != 1:
                yield invalid_value(spot, value, "must be an integer")
    for name, value in requests.items():
        spot = f"{where}.requests"
        try:
            wanted = quantities.parse(value)
            limit = quantities.parse(limits[name]) if name in limits else None
        except ValueError:
            continue
        if limit is None:
            if _extended(name):
                yield required(f"{where}.limits", "Limit must be set for non overcommitable resources")
        elif _extended(name) and wanted != limit:
            yield invalid_value(spot, value, f"must be equal to {name} limit of {limits[name]}")
        elif wanted > limit:
            yield invalid_value(spot, value, f"must be less than or equal to {name} limit of {limits[name]}")


def _containers(spec: Obj, where: str) -> Iterator[Cause]:
    if not spec.get("containers"):
        yield required(f"{where}.containers")
    seen: set[str] = set()
    volumes = {item.get("name") for item in spec.get("volumes") or []}
    for part in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(part) or []):
            spot = f"{where}.{part}[{index}]"
            name = container.get("name")
            if not name:
                yield required(f"{spot}.name")
            elif not _DNS_LABEL.match(name) or len(name) > 63:
                yield invalid_value(f"{spot}.name", name, names.LABEL_TEXT)
            elif name in seen:
                yield Cause("FieldValueDuplicate", f"{spot}.name", name)
            seen.add(name)
            if not container.get("image"):
                yield required(f"{spot}.image")
            if container.get("imagePullPolicy") not in _PULL:
                yield not_supported(f"{spot}.imagePullPolicy", container.get("imagePullPolicy"), _PULL)
            for number, mount in enumerate(container.get("volumeMounts") or []):
                if mount.get("name") not in volumes:
                    yield Cause("FieldValueNotFound", f"{spot}.volumeMounts[{number}].name", mount.get("name"))
            yield from _resources(container.get("resources") or {}, f"{spot}.resources")


def _pod_spec(spec: Obj, where: str) -> Iterator[Cause]:
    yield from _containers(spec, where)
    if spec.get("restartPolicy") not in _RESTART:
        yield not_supported(f"{where}.restartPolicy", spec.get("restartPolicy"), _RESTART)
    for index, toleration in enumerate(spec.get("tolerations") or []):
        spot = f"{where}.tolerations[{index}]"
        operator = toleration.get("operator") or "Equal"
        if operator not in ("Equal", "Exists", "Lt", "Gt"):
            yield not_supported(f"{spot}.operator", operator, ["Equal", "Exists"])
        elif operator == "Exists" and toleration.get("value"):
            yield invalid_value(f"{spot}.operator", toleration, "value must be empty when `operator` is 'Exists'")
        elif not toleration.get("key") and operator != "Exists":
            yield invalid_value(f"{spot}.operator", operator, "operator must be Exists when `key` is empty")
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= _INT32:
        yield invalid_value(f"{where}.activeDeadlineSeconds", deadline, f"must be between 1 and {_INT32}, inclusive")
    yield from names.labels(spec.get("nodeSelector"), f"{where}.nodeSelector")
    volumes = [item.get("name") for item in spec.get("volumes") or []]
    for index, name in enumerate(volumes):
        if not name:
            yield required(f"{where}.volumes[{index}].name")
        elif name in volumes[:index]:
            yield Cause("FieldValueDuplicate", f"{where}.volumes[{index}].name", name)


# Fields of a pod's spec that may change after creation (ValidatePodUpdate).
_MUTABLE_POD = frozenset({"activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates"})
_POD_UPDATE_TEXT = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def _fixed_pod_spec(spec: Obj) -> Obj:
    fixed = {key: value for key, value in spec.items() if key not in _MUTABLE_POD}
    for part in ("containers", "initContainers"):
        if part in fixed:
            fixed[part] = [{key: value for key, value in item.items() if key != "image"} for item in fixed[part]]
    return fixed


def _deadline(seconds: int | None, before: int | None) -> Iterator[Cause]:
    """A pod's deadline may come earlier, not later (``ValidatePodUpdate``; there 0 is allowed)."""
    where = "spec.activeDeadlineSeconds"
    if seconds is None:
        if before is not None:
            yield invalid_value(where, None, "must not update from a positive integer to nil value")
    elif not 0 <= seconds <= _INT32:
        yield invalid_value(where, seconds, f"must be between 0 and {_INT32}, inclusive")
    elif before is not None and before < seconds:
        yield invalid_value(where, seconds, "must be less than or equal to previous value")


def _pod(new: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = new.get("spec") or {}
    if old is None:
        yield from _pod_spec(spec, "spec")
        return
    before = old.get("spec") or {}
    yield from _deadline(spec.get("activeDeadlineSeconds"), before.get("activeDeadlineSeconds"))
    if not equal(_fixed_pod_spec(spec), _fixed_pod_spec(before)):
        yield forbidden_value("spec", _POD_UPDATE_TEXT)
    kept = spec.get("tolerations") or []
    if any(item not in kept for item in before.get("tolerations") or []):
        yield forbidden_value(
            "spec.tolerations", "existing toleration can not be modified except its tolerationSeconds"
        )


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
    yield from _pod_spec(template.get("spec") or {}, "spec.template.spec")
    restart = dig(template, "spec", "restartPolicy")
    if restart in _RESTART and restart != "Always":
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
        yield from (cause for cause in _pod_spec(template, "spec.template.spec") if "restartPolicy" not in cause.field)
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
    "Pod": _pod,
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
