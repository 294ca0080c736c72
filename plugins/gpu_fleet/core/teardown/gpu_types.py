"""What may bring NVIDIA GPUs into the cluster: instance types, NodePools of others, EKS managed node groups.

A NodePool whose requirements do not exclude GPU types launches one as soon as a pod asks for ``nvidia.com/gpu``, even
if that has not happened so far. Nothing here says what a node really has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gpu_fleet.core.kubernetes.names import GPU_RESOURCE, LABEL_GPU_PRESENT, LABEL_INSTANCE_TYPE
from gpu_fleet.core.spec.instances import OTHER_ACCELERATORS, gpu_types, physical_gpus

Json = Mapping[str, Any]

#: The label domains of the AWS provider and of EKS Auto Mode, which has the same NodePools
#: (aws/karpenter-provider-aws v1.14 pkg/apis/v1/labels.go; Amazon EKS User Guide, 'Create a node pool').
_DOMAINS = ("karpenter.k8s.aws/", "eks.amazonaws.com/")
#: Category and generation of an instance type, as Karpenter reads them from its name
#: (aws/karpenter-provider-aws v1.14 pkg/providers/instancetype/types.go).
_TYPE = re.compile(r"^([a-z]+)(?:-[0-9]+tb)?([0-9]+).*\.")
#: Instance categories that EC2 calls accelerated and that have NVIDIA GPUs; AWS adds families to them every year.
_CATEGORIES = frozenset({"g", "gr", "p"})
#: AMI types of managed node groups for nodes with NVIDIA GPUs (Amazon EKS API reference, ``Nodegroup.amiType``).
_GPU_AMI = re.compile(r"NVIDIA|_GPU\Z")


def may_have_gpus(instance_type: str) -> bool:
    """Whether an instance type has NVIDIA GPUs, by the catalogue; one that it does not know, by its category."""
    if physical_gpus(instance_type) is not None:
        return True
    found = _TYPE.match(instance_type)
    family = instance_type.partition(".")[0]
    return found is not None and found[1] in _CATEGORIES and family not in OTHER_ACCELERATORS


def node_has_gpus(node: Json) -> bool:
    """Whether a node has NVIDIA GPUs, or will have when its device plugin runs."""
    labels = node["metadata"].get("labels") or {}
    return (
        str(((node.get("status") or {}).get("capacity") or {}).get(GPU_RESOURCE, "0")) != "0"
        or labels.get(LABEL_GPU_PRESENT) == "true"
        or may_have_gpus(str(labels.get(LABEL_INSTANCE_TYPE, "")))
    )


def pool_may_launch_gpus(pool: Json) -> bool:
    """Whether some instance type with NVIDIA GPUs meets all requirements of a NodePool.

    What is not known of a type (its memory, its zones) is taken as met.
    """
    requirements = _requirements(pool)
    return any(all(_met(requirement, candidate) for requirement in requirements) for candidate in _types(requirements))


def group_may_have_gpus(group: Json) -> bool:
    """Whether an EKS managed node group is for nodes with NVIDIA GPUs; one that names neither types nor a known AMI
    (both come from its launch template) may be."""
    types, ami = group.get("instanceTypes") or [], str(group.get("amiType") or "")
    if _GPU_AMI.search(ami) or any(may_have_gpus(str(name)) for name in types):
        return True
    return not types and ami in ("", "CUSTOM")


def _requirements(pool: Json) -> list[Json]:
    spec = ((pool.get("spec") or {}).get("template") or {}).get("spec") or {}
    return list(spec.get("requirements") or [])


def _types(requirements: Iterable[Json]) -> list[dict[str, str]]:
    """What is known of the GPU types that could be meant: the catalogue's, and those that the requirements name."""
    found = {name: _labels(name) for name in gpu_types()}
    for requirement in requirements:
        key = _key(requirement)
        for value in map(str, requirement.get("values") or ()):
            if key == LABEL_INSTANCE_TYPE and may_have_gpus(value):
                found.setdefault(value, _labels(value))
            elif key == "instance-family" and may_have_gpus(f"{value}."):
                found.setdefault(value, {"instance-family": value, **_name_parts(f"{value}.")})
    return list(found.values())


def _labels(instance_type: str) -> dict[str, str]:
    family, _, size = instance_type.partition(".")
    count = physical_gpus(instance_type)
    return {
        LABEL_INSTANCE_TYPE: instance_type,
        "instance-family": family,
        "instance-size": size,
        **_name_parts(instance_type),
        **({} if count is None else {"instance-gpu-count": str(count)}),
    }


def _name_parts(instance_type: str) -> dict[str, str]:
    found = _TYPE.match(instance_type)
    parts = {"instance-category": found[1], "instance-generation": found[2]} if found else {}
    return {**parts, "instance-gpu-manufacturer": "nvidia"}


def _key(requirement: Json) -> str:
    """A requirement's key, without the domain of a provider's label."""
    key = str(requirement.get("key", ""))
    return next((key.removeprefix(domain) for domain in _DOMAINS if key.startswith(domain)), key)


def _met(requirement: Json, labels: Mapping[str, str]) -> bool:
    key, operator = _key(requirement), str(requirement.get("operator", ""))
    values = [str(value) for value in requirement.get("values") or ()]
    known = labels.get(key)
    if operator == "DoesNotExist":
        # Every GPU type has the labels of its GPU.
        return known is None and not key.startswith("instance-gpu-")
    if known is None or operator == "Exists":
        return True
    if operator == "In":
        return known in values
    if operator == "NotIn":
        return known not in values
    return _compared(operator, known, values)


def _compared(operator: str, known: str, values: list[str]) -> bool:
    """``Gt`` and ``Lt``, and since Karpenter 1.9 ``Gte`` and ``Lte``; what cannot be compared is taken as met."""
    if len(values) != 1 or not (known.isdecimal() and values[0].isdecimal()):
        return True
    left, right = int(known), int(values[0])
    return {"Gt": left > right, "Lt": left < right, "Gte": left >= right, "Lte": left <= right}.get(operator, True)
