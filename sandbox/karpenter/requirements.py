"""Sets of node requirements and when two of them are compatible (kubernetes-sigs/karpenter ``pkg/scheduling``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

#: Labels that a node gets from its instance: a pod may ask for them without the pool naming them.
WELL_KNOWN = frozenset(
    {
        "karpenter.sh/nodepool", "karpenter.sh/capacity-type", "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region", "node.kubernetes.io/instance-type", "kubernetes.io/arch", "kubernetes.io/os",
        "node.kubernetes.io/windows-build", "topology.k8s.aws/zone-id", "karpenter.k8s.aws/instance-hypervisor",
        "karpenter.k8s.aws/instance-category", "karpenter.k8s.aws/instance-family",
        "karpenter.k8s.aws/instance-generation", "karpenter.k8s.aws/instance-size",
        "karpenter.k8s.aws/instance-local-nvme", "karpenter.k8s.aws/instance-cpu",
        "karpenter.k8s.aws/instance-memory", "karpenter.k8s.aws/instance-gpu-name",
        "karpenter.k8s.aws/instance-gpu-manufacturer", "karpenter.k8s.aws/instance-gpu-count",
        "karpenter.k8s.aws/instance-gpu-memory", "karpenter.k8s.aws/capacity-reservation-id",
        "karpenter.k8s.aws/capacity-reservation-type", "karpenter.k8s.aws/capacity-reservation-interruptible",
    }
)  # fmt: skip
NORMALIZED = {
    "failure-domain.beta.kubernetes.io/zone": "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region": "topology.kubernetes.io/region",
    "beta.kubernetes.io/arch": "kubernetes.io/arch",
    "beta.kubernetes.io/os": "kubernetes.io/os",
    "beta.kubernetes.io/instance-type": "node.kubernetes.io/instance-type",
}


class Incompatible(Exception):
    """Two sets of requirements exclude each other."""


@dataclass(frozen=True)
class Requirement:
    """
    :ivar complement: the values are those that are *not* allowed.
    :ivar least: smallest integer that is allowed.
    :ivar most: largest integer that is allowed.
    """

    key: str
    complement: bool
    values: frozenset[str]
    least: int | None = None
    most: int | None = None

    @property
    def operator(self) -> str:
        if self.complement:
            return "NotIn" if self.values else "Exists"
        return "In" if self.values else "DoesNotExist"

    def allows(self, value: str) -> bool:
        return (value in self.values) != self.complement and self._within(value)

    def _within(self, value: str) -> bool:
        if self.least is None and self.most is None:
            return True
        if not value.isdigit():
            return False
        number = int(value)
        return (self.least is None or number >= self.least) and (self.most is None or number <= self.most)

    def intersection(self, other: Requirement) -> Requirement:
        least = max((bound for bound in (self.least, other.least) if bound is not None), default=None)
        most = min((bound for bound in (self.most, other.most) if bound is not None), default=None)
        if least is not None and most is not None and least > most:
            return Requirement(self.key, False, frozenset())
        if self.complement and other.complement:
            return Requirement(self.key, True, self.values | other.values, least, most)
        if self.complement:
            values = other.values - self.values
        elif other.complement:
            values = self.values - other.values
        else:
            values = self.values & other.values
        bounds = Requirement(self.key, True, frozenset(), least, most)
        return Requirement(self.key, False, frozenset(value for value in values if bounds._within(value)))

    def __str__(self) -> str:
        if self.operator in ("Exists", "DoesNotExist"):
            text = f"{self.key} {self.operator}"
        else:
            values = sorted(self.values)
            if len(values) > 5:
                values = [*values[:5], f"and {len(values) - 5} others"]
            text = f"{self.key} {self.operator} [{' '.join(values)}]"
        text += f" >={self.least}" if self.least is not None else ""
        return text + (f" <={self.most}" if self.most is not None else "")


def requirement(key: str, operator: str, values: Iterable[str] = ()) -> Requirement:
    """From one entry of ``requirements`` or ``matchExpressions``."""
    key, given = NORMALIZED.get(key, key), list(values)
    match operator:
        case "In":
            return Requirement(key, False, frozenset(given))
        case "NotIn":
            return Requirement(key, True, frozenset(given))
        case "Exists":
            return Requirement(key, True, frozenset())
        case "DoesNotExist":
            return Requirement(key, False, frozenset())
        case "Gt":
            return Requirement(key, True, frozenset(), least=int(given[0]) + 1)
        case "Gte":
            return Requirement(key, True, frozenset(), least=int(given[0]))
        case "Lt":
            return Requirement(key, True, frozenset(), most=int(given[0]) - 1)
        case "Lte":
            return Requirement(key, True, frozenset(), most=int(given[0]))
    raise ValueError(f"unknown operator {operator!r}")


class Requirements(dict[str, Requirement]):
    """By key; adding narrows."""

    def add(self, *others: Requirement) -> Requirements:
        for other in others:
            self[other.key] = self[other.key].intersection(other) if other.key in self else other
        return self

    def merged(self, other: Requirements) -> Requirements:
        return Requirements(self).add(*other.values())

    def check(self, wanted: Requirements, undefined: frozenset[str] = WELL_KNOWN) -> None:
        """
        :param wanted: what a pod (or pool) asks of nodes with *these* requirements.
        :param undefined: keys that need not be defined here.
        :raises Incompatible: with Karpenter's words.
        """
        for key, incoming in sorted(wanted.items()):
            if key in self:
                existing = self[key]
                negative = ("NotIn", "DoesNotExist")
                if not _meet(existing, incoming) and not (
                    incoming.operator in negative and existing.operator in negative
                ):
                    raise Incompatible(f"key {key}, {incoming} not in {existing}")
            elif key not in undefined and incoming.operator not in ("NotIn", "DoesNotExist"):
                raise Incompatible(f'label "{key}" does not have known values')

    def compatible(self, wanted: Requirements, undefined: frozenset[str] = WELL_KNOWN) -> bool:
        try:
            self.check(wanted, undefined)
        except Incompatible:
            return False
        return True

    def labels(self) -> dict[str, str]:
        """Labels that a node of these requirements has for sure: keys with exactly one value."""
        return {
            key: next(iter(item.values)) for key, item in self.items() if not item.complement and len(item.values) == 1
        }

    def shown(self) -> str:
        hidden = ("kubernetes.io/hostname",)
        return ", ".join(str(item) for key, item in sorted(self.items()) if key not in hidden)

    def entries(self) -> list[Object]:
        """As ``spec.requirements`` of a NodeClaim."""
        found = []
        for key, item in sorted(self.items()):
            if item.least is not None:
                found.append({"key": key, "operator": "Gte", "values": [str(item.least)]})
            if item.most is not None:
                found.append({"key": key, "operator": "Lte", "values": [str(item.most)]})
            if (item.least is None and item.most is None) or item.values:
                entry: Object = {"key": key, "operator": item.operator}
                found.append(entry | ({"values": sorted(item.values)} if item.values else {}))
        return found


def _meet(left: Requirement, right: Requirement) -> bool:
    common = left.intersection(right)
    return common.complement or bool(common.values)


def from_entries(entries: Iterable[Object] | None) -> Requirements:
    return Requirements().add(
        *(requirement(item["key"], item["operator"], item.get("values") or ()) for item in entries or ())
    )


def from_labels(labels: Mapping[str, str] | None) -> Requirements:
    return Requirements().add(*(requirement(key, "In", [value]) for key, value in (labels or {}).items()))


def alternatives_of(pod: Object) -> list[Requirements]:
    """What a pod asks of its node: its selector with each term of its required node affinity, first term first."""
    spec = pod["spec"]
    selector = from_labels(spec.get("nodeSelector"))
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms") or []
    if not terms:
        return [selector]
    return [selector.merged(from_entries(term.get("matchExpressions"))) for term in terms]
