"""On which nodes Karpenter's own controller can run, and whether node groups are about to add more of them. Pure.

Sources: aws/karpenter-provider-aws v1.14.1 ``charts/karpenter/values.yaml`` (placement: not on Karpenter's own nodes,
never two replicas on one node); Amazon EKS API, types Nodegroup, NodegroupHealth and Taint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.kubernetes.names import LABEL_NODE_GROUP, LABEL_NODE_POOL
from gpu_fleet.core.kubernetes.objects import condition, is_true
from gpu_fleet.core.preflight.facts import Object, mapping

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec

#: States of a node group in which nodes join without further action (Amazon EKS API, Nodegroup ``status``).
CREATING, UPDATING, ACTIVE = "CREATING", "UPDATING", "ACTIVE"
#: The chart's defaults for the controller.
_CHART_TOLERATIONS: tuple[Object, ...] = ({"key": "CriticalAddonsOnly", "operator": "Exists"},)
_CHART_NODE_SELECTOR = {"kubernetes.io/os": "linux"}
#: Effects that prevent scheduling.
_BARRING = ("NoSchedule", "NoExecute")
#: Effects as the EKS API writes them.
_EFFECTS = {"NO_SCHEDULE": "NoSchedule", "NO_EXECUTE": "NoExecute", "PREFER_NO_SCHEDULE": "PreferNoSchedule"}


def _tolerates(toleration: Object, taint: Object) -> bool:
    """https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/."""
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint.get("key"))
    return toleration.get("key") == taint.get("key") and (toleration.get("value") or "") == (taint.get("value") or "")


@dataclass(frozen=True)
class Placement:
    """What the chart's values require of a node; JSON-able, for a trigger's arguments.

    :ivar wanted: how many nodes the replicas need.
    """

    wanted: int
    selector: Mapping[str, str]
    tolerations: tuple[Object, ...]

    @classmethod
    def of(cls, spec: ClusterSpec) -> Placement:
        values = spec.karpenter.values
        selector = {**_CHART_NODE_SELECTOR, **mapping(values.get("nodeSelector"))}
        if "nodeSelector" in values and values["nodeSelector"] is None:
            selector = {}
        tolerations = values["tolerations"] or () if "tolerations" in values else _CHART_TOLERATIONS
        demanded = {key: str(value) for key, value in selector.items() if value is not None}
        return cls(spec.karpenter.replicas, demanded, tuple(tolerations))

    def to_json(self) -> dict[str, Any]:
        tolerations = [dict(each) for each in self.tolerations]
        return {"wanted": self.wanted, "selector": dict(self.selector), "tolerations": tolerations}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Placement:
        return cls(int(value["wanted"]), dict(value["selector"]), tuple(value["tolerations"]))

    def why_not(self, node: Object) -> str:
        """Why the controller cannot run on this node; empty if it can."""
        if LABEL_NODE_POOL in mapping(mapping(node.get("metadata")).get("labels")):
            return "is Karpenter's own"
        if mapping(node.get("spec")).get("unschedulable"):
            return "is cordoned"
        if not is_true(node, "Ready"):
            return "is not Ready"
        return self._keeps_away(node)

    def _keeps_away(self, node: Object) -> str:
        labels = mapping(mapping(node.get("metadata")).get("labels"))
        for key, wanted in self.selector.items():
            if labels.get(key) != wanted:
                return f"has no label {key}={wanted}"
        for taint in mapping(node.get("spec")).get("taints") or ():
            if taint.get("effect") in _BARRING and not any(_tolerates(each, taint) for each in self.tolerations):
                return f"has the taint {taint.get('key')}:{taint.get('effect')}, which Karpenter does not tolerate"
        return ""

    def usable(self, nodes: Iterable[Object]) -> list[str]:
        """Names of the nodes on which the controller can run."""
        return sorted(str(node["metadata"]["name"]) for node in nodes if not self.why_not(node))

    def suits(self, group: Object) -> bool:
        """Whether the nodes of a node group could run the controller, by its labels and taints."""
        system = "windows" if str(group.get("amiType") or "").startswith("WINDOWS") else "linux"
        labels = {"kubernetes.io/os": system, LABEL_NODE_GROUP: str(group.get("nodegroupName"))}
        taints = [
            {**taint, "effect": _EFFECTS.get(str(taint.get("effect")), taint.get("effect"))}
            for taint in group.get("taints") or ()
        ]
        pretended = {"metadata": {"labels": {**labels, **mapping(group.get("labels"))}}, "spec": {"taints": taints}}
        return not self._keeps_away(pretended)


@dataclass(frozen=True)
class Coming:
    """A node group that is about to add nodes.

    :ivar since: time of its last change, RFC 3339.
    :ivar ready: how many of its nodes need not be waited for.
    :ivar desired: its desired number of nodes.
    """

    name: str
    status: str
    since: str
    ready: int
    desired: int

    def __str__(self) -> str:
        since = f" since {self.since}" if self.since else ""
        return f"node group {self.name} has been {self.status}{since}, {self.ready} of {self.desired} node(s) are Ready"


def coming(placement: Placement, nodes: Sequence[Object], groups: Iterable[Object]) -> list[Coming]:
    """The node groups whose nodes are worth waiting for; empty if all of them together would not be enough.

    These are groups that are being created or updated, whose nodes may still be replaced, and groups in which fewer
    nodes than desired have joined; except those in which EKS has found a fault, or whose nodes cannot run Karpenter.
    """
    found = []
    for group in groups:
        name, status = str(group.get("nodegroupName")), str(group.get("status"))
        desired = int(mapping(group.get("scalingConfig")).get("desiredSize") or 0)
        mine = [node for node in nodes if _group_of(node) == name]
        here = [node for node in mine if (_joined(node) if status == ACTIVE else not placement.why_not(node))]
        on_the_way = status in (CREATING, UPDATING, ACTIVE) and len(here) < desired
        if on_the_way and not _issues(group) and placement.suits(group):
            since = str(group.get("modifiedAt") or group.get("createdAt") or "")
            found.append(Coming(name, status, since, len(here), desired))
    missing = placement.wanted - len(placement.usable(nodes))
    return found if sum(max(0, each.desired - each.ready) for each in found) >= missing else []


def _joined(node: Object) -> bool:
    """Whether a node has finished joining: Ready, or silent by now (kubernetes ``pkg/controller/nodelifecycle``)."""
    return (condition(node, "Ready") or {}).get("status") in ("True", "Unknown")


def _group_of(node: Object) -> str:
    return str(mapping(mapping(node.get("metadata")).get("labels")).get(LABEL_NODE_GROUP) or "")


def _issues(group: Object) -> str:
    issues = mapping(group.get("health")).get("issues") or ()
    return "; ".join(f"{issue.get('code')}: {issue.get('message')}" for issue in issues)


def faults(groups: Iterable[Object]) -> list[str]:
    """The faults that EKS has found in node groups."""
    return [f"node group {group.get('nodegroupName')} ({found})" for group in groups if (found := _issues(group))]
