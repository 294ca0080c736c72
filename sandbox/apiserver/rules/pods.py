"""What makes a pod, or the pod template of a workload, invalid (kubernetes pkg/apis/core/validation)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sandbox.apiserver import quantities
from sandbox.apiserver.errors import Cause, forbidden_value, invalid_value, not_supported, required
from sandbox.apiserver.jsontools import Obj, equal
from sandbox.apiserver.rules import names

RESTART_POLICIES = ["Always", "OnFailure", "Never"]
_DNS_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_PULL = ["Always", "IfNotPresent", "Never"]
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


def pod_spec(spec: Obj, where: str) -> Iterator[Cause]:
    yield from _containers(spec, where)
    if spec.get("restartPolicy") not in RESTART_POLICIES:
        yield not_supported(f"{where}.restartPolicy", spec.get("restartPolicy"), RESTART_POLICIES)
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


def pod(new: Obj, old: Obj | None) -> Iterator[Cause]:
    spec = new.get("spec") or {}
    if old is None:
        yield from pod_spec(spec, "spec")
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
