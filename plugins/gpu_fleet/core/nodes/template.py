"""The fields of NodePool and EC2NodeClass whose change makes nodes drift. Pure.

Karpenter compares hashes, which say that something changed but not what. Hashed are the whole template of a NodePool
but its requirements (kubernetes-sigs/karpenter v1.14.1 ``pkg/apis/v1/nodepool.go``, Hash and NodeClaimTemplateSpec),
and of an EC2NodeClass all fields but its selectors, ``amiFamily`` and ``ipPrefixCount`` (aws/karpenter-provider-aws
v1.14.1 ``pkg/apis/v1/ec2nodeclass.go``). Requirements are compared with the node's labels, AMIs with what the selector
finds now (``pkg/cloudprovider/drift.go``).

A NodeClaim carries the template that it was created from (``nodepool.go``, ToNodeClaim), but only the hash of its
class, so the fields of the class are looked up in a record (:mod:`gpu_fleet.core.nodes.records`). Fields have the names
that they have in a cluster file, if they occur there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.kubernetes.names import (
    LABEL_CAPACITY_TYPE,
    LABEL_INSTANCE_TYPE,
    LABEL_MPS_CAPABLE,
    LABEL_PLUGIN_CONFIG,
)
from gpu_fleet.core.kubernetes.objects import Object, annotations_of, labels_of
from gpu_fleet.core.spec.types.durations import Duration

POOL_HASH, POOL_HASH_VERSION = "karpenter.sh/nodepool-hash", "karpenter.sh/nodepool-hash-version"
CLASS_HASH, CLASS_HASH_VERSION = "karpenter.k8s.aws/ec2nodeclass-hash", "karpenter.k8s.aws/ec2nodeclass-hash-version"

SHARING, TAINTS, STARTUP_TAINTS = "sharing", "taints", "startupTaints"
EXPIRE_AFTER, GRACE_PERIOD = "expireAfter", "terminationGracePeriod"
AMI_ALIAS, AMI = "amiAlias", "AMI"
LABELS = "labels."
#: Used instead of a field where the hash differs and no more is known.
TEMPLATE, NODE_CLASS = "the NodePool's template", "the EC2NodeClass"

_IGNORED_OF_CLASS = frozenset(
    {
        "subnetSelectorTerms",
        "securityGroupSelectorTerms",
        "capacityReservationSelectorTerms",
        "amiSelectorTerms",
        "amiFamily",
        "ipPrefixCount",
    }
)
_VOLUME_SIZE = "blockDeviceMappings[0].ebs.volumeSize"
#: Fields of a class whose values are never shown: they may hold secrets.
_HIDDEN = frozenset({"userData"})
#: Domains of labels that Karpenter, Kubernetes and cloud providers put on a NodeClaim.
_THEIR_DOMAINS = ("kubernetes.io", "k8s.io", "karpenter.sh", "karpenter.k8s.aws", "amazonaws.com")
_REQUIREMENTS = {LABEL_INSTANCE_TYPE: "instanceTypes", LABEL_CAPACITY_TYPE: "capacityTypes"}

Fields = dict[str, str]


@dataclass(frozen=True)
class Change:
    """One field in which a node differs from what would be launched today.

    :ivar was: the value that the node was launched with; empty for none.
    :ivar now: the value that it would be launched with now; empty for none. Both are empty if only the fact of a change
        is known.
    """

    field: str
    was: str = ""
    now: str = ""

    def __str__(self) -> str:
        if not self.was and not self.now:
            return f"{self.field} changed"
        return f"{self.field} changed ({self.was or 'none'} -> {self.now or 'none'})"

    def to_json(self) -> dict[str, str]:
        return {"field": self.field, "was": self.was, "now": self.now}


def differences(was: Mapping[str, str], now: Mapping[str, str]) -> list[Change]:
    """The fields that differ, in the order of ``now``; removed ones at the end."""
    return [
        Change(key, was.get(key, ""), now.get(key, ""))
        for key in (*now, *(key for key in was if key not in now))
        if _canonical(key, was.get(key, "")) != _canonical(key, now.get(key, ""))
    ]


def _canonical(field: str, value: str) -> str:
    """Durations are hashed as such: ``60m`` is ``1h``, and ``Never`` is nothing."""
    if field not in (EXPIRE_AFTER, GRACE_PERIOD) or value in ("", "Never"):
        return "" if value == "Never" else value
    try:
        return str(Duration.parse(value).seconds)
    except ValueError:
        return value


# --- NodePool and NodeClaim ------------------------------------------------------------------------------------------


def pool_fields(pool: Object) -> Fields:
    """The hashed fields of a NodePool's template."""
    template = (pool.get("spec") or {}).get("template") or {}
    metadata = template.get("metadata") or {}
    fields = _label_fields(metadata.get("labels") or {})
    fields |= {f"annotations.{key}": str(value) for key, value in sorted((metadata.get("annotations") or {}).items())}
    return {**_spec_fields(template.get("spec") or {}), **fields}


def claim_fields(claim: Object, pool: Object) -> Fields:
    """The same fields as a NodeClaim has them, so that they can be compared with its NodePool's.

    It also has labels of Karpenter and annotations of other controllers and people: of the annotations only the keys of
    the template count.
    """
    wanted = pool_fields(pool)
    asked = {entry.get("key") for entry in requirements_of(pool)}
    own = {
        key: value
        for key, value in labels_of(claim).items()
        if f"{LABELS}{key}" in wanted or not (_theirs(key) or key in asked)
    }
    notes = {f"annotations.{key}": str(value) for key, value in annotations_of(claim).items()}
    fields = {**_spec_fields(claim.get("spec") or {}), **_label_fields(own)}
    return fields | {key: value for key, value in notes.items() if key in wanted}


def _spec_fields(spec: Mapping[str, Any]) -> Fields:
    fields = {
        TAINTS: _taints(spec.get("taints")),
        STARTUP_TAINTS: _taints(spec.get("startupTaints")),
        EXPIRE_AFTER: str(spec.get("expireAfter") or ""),
        GRACE_PERIOD: str(spec.get("terminationGracePeriod") or ""),
        "nodeClass": str((spec.get("nodeClassRef") or {}).get("name") or ""),
    }
    return {key: value for key, value in fields.items() if value}


def _label_fields(labels: Mapping[str, Any]) -> Fields:
    fields = {}
    for key, value in sorted(labels.items()):
        if key == LABEL_PLUGIN_CONFIG:
            fields[SHARING] = str(value)
        elif key != LABEL_MPS_CAPABLE:  # follows from the sharing
            fields[f"{LABELS}{key}"] = str(value)
    return fields


def _taints(taints: Iterable[Mapping[str, Any]] | None) -> str:
    """In words and sorted: to Karpenter taints are a set."""
    shown = [
        f"{taint.get('key')}{'=' + str(taint['value']) if taint.get('value') else ''}:{taint.get('effect')}"
        for taint in taints or ()
    ]
    return ", ".join(sorted(shown))


def _theirs(key: str) -> bool:
    domain, slash, _ = key.rpartition("/")
    return bool(slash) and any(domain == each or domain.endswith(f".{each}") for each in _THEIR_DOMAINS)


def requirements_of(pool: Object) -> list[Mapping[str, Any]]:
    return list((((pool.get("spec") or {}).get("template") or {}).get("spec") or {}).get("requirements") or [])


def unmet_requirements(claim: Object, pool: Object) -> list[Change]:
    """The requirements of a NodePool that a node of it no longer meets (``nodeclaim/disruption/drift.go``)."""
    labels, found = labels_of(claim), []
    for entry in requirements_of(pool):
        key, values = str(entry.get("key")), [str(value) for value in entry.get("values") or []]
        value = labels.get(key, "")
        unmet = {
            "In": value not in values,
            "NotIn": value in values,
            "Exists": key not in labels,
            "DoesNotExist": key in labels,
        }.get(str(entry.get("operator")), False)
        if unmet:
            now = f"one of {', '.join(values)}" if entry.get("operator") == "In" else f"{entry.get('operator')}"
            found.append(Change(_REQUIREMENTS.get(key, f"requirements.{key}"), value, now))
    return found


def hashes_differ(claim: Object, owner: Object, key: str, version: str) -> bool:
    """Whether Karpenter sees another hash; hashes of different versions say nothing to each other."""
    mine, theirs = annotations_of(claim), annotations_of(owner)
    if any(name not in each for name in (key, version) for each in (mine, theirs)):
        return False
    return mine[version] == theirs[version] and mine[key] != theirs[key]


# --- EC2NodeClass ----------------------------------------------------------------------------------------------------


def class_fields(node_class: Object) -> Fields:
    """The hashed fields of an EC2NodeClass, flat; values that may be secret as a digest."""
    spec = {k: v for k, v in (node_class.get("spec") or {}).items() if k not in _IGNORED_OF_CLASS}
    fields: Fields = {}
    for key, value in sorted(spec.items()):
        if key in _HIDDEN:
            fields[key] = f"sha256:{hashlib.sha256(str(value).encode()).hexdigest()[:12]}"
        else:
            _flatten(key, value, fields)
    if _VOLUME_SIZE in fields:
        fields["volumeSize"] = fields.pop(_VOLUME_SIZE)
    family = alias_of(node_class).partition("@")[0] or str((node_class.get("spec") or {}).get("amiFamily") or "")
    return fields | ({"AMI family": family.lower()} if family else {})


def _flatten(path: str, value: Any, fields: Fields) -> None:
    if isinstance(value, Mapping):
        for key, item in sorted(value.items()):
            _flatten(f"{path}.{key}", item, fields)
    elif isinstance(value, (list, tuple)):
        ordered = sorted(value, key=lambda item: json.dumps(item, sort_keys=True, default=str))
        for index, item in enumerate(ordered):
            _flatten(f"{path}[{index}]", item, fields)
    elif value not in (None, "", 0, False):
        fields[path] = str(value)


def alias_of(node_class: Object) -> str:
    """The AMI alias of a class; empty if it selects its AMIs in another way."""
    terms = (node_class.get("spec") or {}).get("amiSelectorTerms") or []
    return next((str(term["alias"]) for term in terms if term.get("alias")), "")


def images_of(node_class: Object) -> dict[str, str]:
    """AMI id -> name, as the class has found them last."""
    found = (node_class.get("status") or {}).get("amis") or []
    return {str(image.get("id")): str(image.get("name") or "") for image in found}
